"""Fine-tuning on the command line: what it says, and what it says to do next."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from commands import make_call
from finetuned import SAMPLES, likely
from loading import needs
from rich.console import Console

from hyperlens.models import Model
from hyperlens.terminal import show_fine_tuned
from hyperlens.terminal.finetuning import Asked

pytestmark = [needs("trl"), needs("peft")]


def test_the_command_line_trains_watches_and_says_what_to_do_next(
    saved: Path, plain: Model, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(json.dumps({"prompt": one.prompt, "target": one.target}) + "\n" for one in likely(plain))
    (tmp_path / "own.jsonl").write_text(rows)
    call = make_call(capsys, monkeypatch, "finetune", str(saved), str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "out"))
    options = "--steps 4 --batch 4 --log-every 2 --effort-weight 1 --focal-depth 1".split()
    status, shown, _ = call(*options, "--watch", tmp_path / "own.jsonl", "--watch-every", 2, "--watch-share", 1)
    assert status == 0
    lines = shown.splitlines()
    assert [line[:11] for line in lines if "loss" in line] == ["step 2 of 4", "step 4 of 4"]
    assert sum("watched: accuracy" in line for line in lines) == 3
    watched = [line.rpartition(": ")[2] for line in lines if "watched: accuracy" in line]
    assert watched == ["the base", "no change shown", "no change shown"]  # of 12 samples
    assert re.search(r"step 4 of 4  watched: accuracy [01]\.\d+ \([+−]?\d\.\d+\)  confidence .* \(.*\)  Ω .* \(.*\): no", shown)
    assert lines[-1].startswith("Next: hyperlens compare")
    assert lines[-1].endswith("/out --file HELD-OUT.jsonl --focal-depth 1")
    status, shown, _ = call(*options, "--json")
    result = json.loads(shown)
    assert status == 0 and result["found"] and result["examples"]["tasks"] == {"own": 12}
    for words, sentence in (
        (["--rate", "0.5"], "holds another fine-tuning"),
        (["--effort-weight=-1"], "effort_weight is -1.0; give a number from 0 up"),
        (["--stop", "blind confidence"], "give --watch FILE or TASK too"),
    ):
        status, shown, said = call(*options, *words)
        assert status == 2 and not shown and sentence in said and len(said.strip().splitlines()) == 1
    status, _, said = make_call(capsys, monkeypatch, "finetune", str(saved))("--out", tmp_path / "two")
    assert status == 2 and "there is nothing to train on" in said


def test_what_is_to_be_run_next_draws_other_samples_than_were_trained_on() -> None:
    console = Console(file=io.StringIO(), width=400)
    result = {
        "out": "tuned",
        "found": False,
        "recipe": {"seed": 7},
        "examples": {},
        "base": {"name": "reference"},
        "training": {"steps": 3, "planned": 4, "stopped": True},
    }
    options = {"options": ("--focal-depth", "1", "--chat"), "shots": ("--few-shot", "2")}
    show_fine_tuned(console, result, (), Asked(("mathematics", "gsm8k", "gsm8k"), files=True, **options))
    said = console.file.getvalue()
    next_seeds = "--task mathematics --task gsm8k --few-shot 2 --seed 9 --focal-depth 1 --chat\n"
    assert f"Next: hyperlens compare reference tuned {next_seeds}" in said
    assert "Next: hyperlens compare reference tuned --file HELD-OUT.jsonl --focal-depth 1 --chat\n" in said
    assert "rows of gsm8k that were trained on" in said and "after step 3 of 4" in said


def test_what_was_skipped_kept_and_stopped_is_said_at_the_end() -> None:
    console = Console(file=io.StringIO(), width=400)
    result = {"out": "tuned", "found": False, "recipe": {"seed": 7}, "examples": {}, "base": {"name": "reference"}}
    measured = {"effort/share": 0.01, "effort/seconds": 0.2, "confidence/probe": 0.5}
    rows = [{"step": 1, **measured}, {"step": 2, "effort/share": 0.01}, {"step": 3, **measured, "blind_confidence": 1.0}]
    stopped = {"training": {"steps": 3, "planned": 8, "stopped": True}}
    best = {"rule": "accuracy", "score": 0.5471, "step": 1}
    show_fine_tuned(console, result | stopped, rows, Asked(stop="lost accuracy"), best)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith('Stopped by the rule "lost accuracy" after step 3 of 8')
    assert lines[1].startswith("1 of 3 measurements were skipped for their cost")
    assert lines[2].startswith("At its last reading, after step 3, tuned shows blind confidence")
    assert lines[3:5] == ["Model: tuned", "Best (accuracy 0.547, step 1): tuned.checkpoint/best"]
    show_fine_tuned(console, result | stopped, [*rows, {"step": 4, **measured, "blind_confidence": 0.0}], Asked())
    assert console.file.getvalue().count("shows blind confidence") == 1


def test_an_interruption_says_from_which_step_the_same_command_goes_on(
    saved: Path, plain: Model, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperlens.cli import finetuning

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    rows = "".join(json.dumps({"prompt": one.prompt, "target": one.target}) + "\n" for one in SAMPLES)
    (tmp_path / "own.jsonl").write_text(rows)
    call = make_call(capsys, monkeypatch, "finetune", str(saved), str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "out"))
    options = "--steps 5 --batch 4 --log-every 2 --save-every 3".split()
    monkeypatch.setattr(finetuning, "_report", lambda light, json: interrupt)
    status, _, said = call(*options)
    assert status == 130 and said.splitlines()[-1] == "hyperlens: stopped; the same command goes on from step 3"
    status, _, said = call(*options, "--anew")
    assert status == 130 and "with --resume for --anew, goes on from step 3" in said
    monkeypatch.setattr(finetuning, "_read", lambda *given: interrupt({"step": 4}))
    status, _, said = call(*options)
    assert status == 130 and said.splitlines()[-1] == "hyperlens: stopped; the same command goes on from here"


def test_what_is_watched_of_a_task_is_not_trained_on_and_spread_evenly() -> None:
    from hyperlens.cli import finetuning

    trained = finetuning._draw("mathematics", 50, 0, False, 1, "")  # the seed of what is watched
    found = finetuning._find_probe("mathematics", trained, False, 0, "")
    known = {(one.prompt, one.target) for one in trained}
    assert len(found) == finetuning.WATCHED and not known & {(one.prompt, one.target) for one in found}
    levels = [sum(one.level == level for one in found) for level in {one.level for one in found}]
    assert len(levels) == len({one.level for one in trained}) and max(levels) <= 3 * min(levels)
