"""The top tokens that a study keeps of every state: those that `trace` reads, and in nobody's way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from commands import make_call
from studied import STUDY, TASKS, contents

import hyperlens as hl
from hyperlens.errors import HyperLensWarning, InputError
from hyperlens.runs import measure
from hyperlens.runs.opening import open_store
from hyperlens.runs.plan import plan_study
from hyperlens.runs.spec import parse_study
from hyperlens.tasks import draw_task

PLAIN = replace(STUDY, tasks=TASKS[:1], limit=6)
KEEPING = replace(PLAIN, lenses=(hl.LensSpec(focal_depths=(0, 2), top_k=3),))
TOP = ("top_ids", "top_probabilities")


@pytest.fixture(scope="module")
def run(reference, tmp_path_factory):
    return hl.run_study(KEEPING, tmp_path_factory.mktemp("run") / "two", {"reference": reference})


def test_they_are_those_that_trace_reads_however_many_shards_hold_them(run, reference):
    drawn = draw_task(TASKS[0], 6, 0).samples
    traced = hl.trace(reference, drawn, hl.HyperLens((0, 2)), reference="output", limits=hl.Limits(top_k=3))
    kept = run.trajectory("logic")
    assert len({shard for shard, _ in run.parts("logic")}) == 2
    assert kept.data["top_ids"].dims == ("token", "focal_depth", "state", "top") and kept.data.sizes["top"] == 3
    np.testing.assert_allclose(kept.data["top_probabilities"].values, traced.data["top_probabilities"].values, atol=1e-5)
    assert (kept.data["top_ids"].values[..., 0] == traced.data["top_ids"].values[..., 0]).mean() > 0.99
    used = {str(token) for token in np.unique(kept.data["top_ids"].values)}
    assert used == set(kept.manifest["top_tokens"])
    assert {token: traced.manifest["top_tokens"].get(token, text) for token, text in kept.manifest["top_tokens"].items()} == (
        kept.manifest["top_tokens"]
    )


def assert_alike(one, other):
    """The same documents, but for rounding: logits are whole on one side, and summed while they come on the other."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_alike(mine, theirs)
    else:
        assert one == (pytest.approx(other, rel=1e-4, abs=1e-6) if isinstance(other, float) else other)


def test_everything_else_of_a_run_is_as_without_them(run, reference, tmp_path):
    plain = hl.run_study(PLAIN, tmp_path / "plain", {"reference": reference})
    for part in ("groups", "trends"):
        assert_alike(run.results[part], plain.results[part])
    np.testing.assert_allclose(run.trajectory().to_numpy(), plain.trajectory().to_numpy(), rtol=1e-4, atol=1e-6)
    tables = [next(iter(one.parts("logic")))[1] for one in (run, plain)]
    assert {*tables[0].column_names} - {*tables[1].column_names} == {f"{name}@{depth}" for name in TOP for depth in (0, 2)}
    assert not list(plain.folder.rglob("*.spelling.parquet"))
    entries = [json.loads(file.read_text()) for file in run.folder.glob("shards/*/*.json")]
    assert entries and not any("top_tokens" in entry["manifest"] for entry in entries), "the ledger is read whole and often"


def test_a_study_that_keeps_none_is_what_it_was_before_there_were_any():
    assert "top_k" not in PLAIN.describe()["lenses"][0] and KEEPING.describe()["lenses"][0]["top_k"] == 3
    assert parse_study(KEEPING.describe()) == KEEPING and parse_study(PLAIN.describe()) == PLAIN
    with pytest.raises(InputError, match='top_k of lens "jump" is -1; give 0 for none'):
        hl.LensSpec(top_k=-1)


def test_a_run_that_keeps_none_does_not_go_on_as_one_that_does(run, reference):
    with pytest.raises(InputError, match=r"lenses\[jump\].top_k is 3 there and 4 here"):
        hl.run_study(replace(PLAIN, lenses=(replace(KEEPING.lenses[0], top_k=4),)), run.folder, {"reference": reference})


def test_what_is_missing_or_damaged_is_measured_again_to_the_same(run, reference, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    expected, store = contents(folder), open_store(folder)
    assert sum(name.endswith(".spelling.parquet") for name in expected) == len(store.shards)
    store.file(store.shards[0], "spelling").unlink()
    store.file(store.shards[1], "spelling").write_bytes(b"gone")
    with pytest.warns(HyperLensWarning, match="2 shards were damaged"):
        hl.run_study(KEEPING, folder, {"reference": reference})
    assert contents(folder) == expected


def test_smaller_batches_read_the_same(run, reference, tmp_path, monkeypatch):
    real = measure.trace_encoded

    def scarce(*given):
        if given[-1].batch_tokens > 1024:
            raise hl.errors.MemoryLimitError("memory did not suffice")
        return real(*given)

    monkeypatch.setattr(measure, "trace_encoded", scarce)
    smaller = hl.run_study(KEEPING, tmp_path / "run", {"reference": reference})
    assert smaller.results["smaller_batches"] == len(open_store(smaller.folder).shards)
    one, other = (each.trajectory().data["top_probabilities"].values for each in (run, smaller))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_tasks_with_fewer_answer_options_stand_beside_the_others(stories, tmp_path):
    study = hl.Study(
        "mixed",
        (hl.ModelSpec(str(stories), "stories"),),
        (hl.TaskSpec("open"), hl.TaskSpec("choice", read="options")),
        (hl.LensSpec(focal_depths=(0, 1), top_k=4),),
    )
    given = {"open": [hl.Sample("Once upon a", " time")], "choice": [hl.Sample("The cat sat", " on", options=(" on", " in"))]}
    run = hl.run_study(study, tmp_path / "run", samples=given)
    assert {task: run.trajectory(task).data.sizes["top"] for task in given} == {"open": 4, "choice": 2}
    np.testing.assert_allclose(run.trajectory("choice").data["top_probabilities"].sum("top"), 1, atol=1e-5)
    with pytest.raises(InputError, match="read in different ways"):
        run.trajectory()
    assert run.scan().collect().shape[0] == run.query("select * from tokens").fetchnumpy()["sample"].size


def test_the_plan_counts_their_room():
    def plan(study: hl.Study) -> int:
        drawn = [draw_task(task, 6, 0) for task in study.tasks]
        return plan_study(study, drawn.__getitem__, calibrate=False).describe()["disk_bytes"]

    assert plan(KEEPING) == (1 + 2 * 3) * plan(PLAIN)


@pytest.mark.usefixtures("loaded_once")
def test_the_command_keeps_as_many_as_it_is_told(capsys, monkeypatch, tmp_path):
    call = make_call(capsys, monkeypatch, "study")
    words = ("--task", "logic", "--level", 1, "--limit", 2, "--focal-depth", 0, "--no-report", "--json")
    assert call(*words, "--top-k", 2, "--out", tmp_path / "run")[0] == 0
    assert hl.open_run(tmp_path / "run").trajectory().data.sizes["top"] == 2
    assert "top_k" in call(*words, "--top-k", -2, "--out", tmp_path / "other")[2]
