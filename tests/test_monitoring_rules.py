"""The warning light: when it warns, stops a training and keeps its best model, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import LAYERS, build_tokenizer
from sentences import is_one_sentence
from transformers import TrainerCallback
from watched import (
    MANY,
    PROBE,
    equal,
    make_light,
    make_trainer,
    measured_rows,
    refuses,
    weights,
    write,
)

import hyperlens as hl
from hyperlens.diagnosis import MEASURES
from hyperlens.errors import ArtefactError, HyperLensError, HyperLensWarning, InputError, ModelError
from hyperlens.monitoring import callback as room
from hyperlens.monitoring import keeping
from hyperlens.monitoring import probe as probing
from hyperlens.monitoring.reading import BLIND, compare_values


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base file for the probe set beside which any model is blindly confident: always right, never sure, all effort."""
    folder = tmp_path_factory.mktemp("blind")
    make_trainer(folder, make_light(probe=MANY), steps=1).train()
    document = json.loads((folder / keeping.BASE).read_text())
    document["values"] |= {"accuracy": [1.0] * 24, "confidence": [0.0] * 24, "effort": [1.0] * 24}
    return write(folder / "blind.json", json.dumps(document))


def test_blind_confidence_is_warned_of_once_and_flagged(tmp_path: Path, blind: Path) -> None:
    trainer = make_trainer(tmp_path, light := make_light(probe=MANY, base=blind, every=1), steps=2)
    with pytest.warns(HyperLensWarning, match="blind confidence after step 1, .* this is reading 2 of 3") as caught:
        trainer.train()
    assert (
        len(caught) == 1
        and is_one_sentence(str(caught[0].message))
        and [row["blind_confidence"] for row in measured_rows(trainer)] == [1.0] * 3
    )
    assert light.readings[-1].verdict == "blind confidence" and light.readings[-1].changes["accuracy"].direction == "down"


def test_a_training_stops_by_a_rule(tmp_path: Path, blind: Path) -> None:
    trainer = make_trainer(tmp_path, make_light(probe=MANY, base=blind, stop="blind confidence"), steps=6)
    with pytest.warns(HyperLensWarning, match="blind confidence"):
        trainer.train()
    assert trainer.state.global_step == 2 and measured_rows(trainer)[-1]["effort/stopped"] == 1.0


def look(light: hl.EffortCallback, blind_looks: set[int], looks: int) -> tuple[list[bool], list[str]]:
    """Whether the light would stop after each of so many fabricated readings, some blindly confident, and its warnings."""
    same = {"struggle": np.ones(24), "commit": np.ones(24), "read": np.ones(24)}
    light._base = {"accuracy": np.ones(24), "confidence": np.zeros(24), "effort": np.ones(24)} | same
    light._looks, light._warned, light.readings, stops = looks, False, (), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HyperLensWarning)
        for step in range(looks):
            changed = {name: 1 - light._base[name] for name in ("accuracy", "confidence", "effort")}
            reading = light._read(step, light._base | changed if step in blind_looks else light._base)
            stops.append(light._should_stop(reading))
    return stops, [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("blind_looks", "settled", "warned"),
    [
        (set(), set(), None),
        ({2}, set(), None),
        ({1, 3, 5}, set(), None),
        ({0, 2, 3, 4}, {3, 4}, "after step 3, .* this is reading 4 of 6"),
    ],
)
def test_a_pattern_has_to_be_shown_twice_in_a_row_but_a_function_decides_alone(
    blind_looks: set[int], settled: set[int], warned: str | None
) -> None:
    probe = [hl.Sample("w1", " w2")] * 24
    stops, said = look(make_light(probe=probe, stop="blind confidence"), blind_looks, 6)
    assert {step for step, stop in enumerate(stops) if stop} == settled
    assert len(said) == bool(warned) and all(re.search(str(warned), one) for one in said)
    stops, _ = look(make_light(probe=probe, stop=lambda reading: reading.verdict == "blind confidence"), blind_looks, 6)
    assert {step for step, stop in enumerate(stops) if stop} == blind_looks


def test_a_name_stops_at_every_pattern_that_contains_it() -> None:
    probe = [hl.Sample("w1", " w2")] * 24
    for rule, stops in (
        ("lost accuracy", True),
        ("lost effort", True),
        ("suspected blind confidence", True),
        ("learning", False),
    ):
        assert look(make_light(probe=probe, stop=rule), {1, 2}, 3)[0] == [False, False, stops], rule


def test_of_a_task_with_few_samples_nothing_is_shown() -> None:
    base = {name: np.ones(48) for name in MEASURES}
    after = base | {"accuracy": np.zeros(48), "confidence": np.full(48, 2.0), "effort": np.zeros(48)}
    reading = compare_values(1, after, base, ["many"] * 40 + ["few"] * 8)
    assert {name: part.verdict for name, part in reading.tasks.items()} == {"many": BLIND, "few": "no change shown"}


@pytest.mark.parametrize(("start", "end", "every"), [(0, 6, 2), (0, 7, 2), (3, 7, 2), (4, 8, 4), (0, 1, 100), (6, 7, 3)])
def test_readings_are_counted_as_they_will_be_made(start: int, end: int, every: int) -> None:
    made = [step for step in range(start + 1, end + 1) if step % every == 0 or step == end]
    assert room._count_looks(start, end, every) == 1 + len(made)


def test_the_best_model_is_kept_by_the_rule_and_replaced_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {1: 0.5, 2: 0.7, 3: 0.7, 4: float("nan"), 5: 0.6, 6: 0.9}
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def rule(reading: Any) -> float:
        seen[reading.step] = weights(trainer)
        return scores[reading.step]

    def write(self: Any, folder: Any, *args: Any, **kwargs: Any) -> None:
        (Path(folder) / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                monkeypatch.setattr(type(trainer.model), "save_pretrained", write)

    trainer = make_trainer(tmp_path, make_light(every=1, keep=rule), steps=6, callbacks=[Kill()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    about = json.loads((tmp_path / "best" / "effort.json").read_text())
    assert (about["step"], about["score"], about["values"]["effort/probe"] > 0) == (2, 0.7, True)
    assert equal(seen[2], weights(SimpleNamespace(model=hl.load_model(tmp_path / "best").network)))
    assert not equal(seen[1], seen[2]) and sorted(os.listdir(tmp_path)) == ["best", keeping.BASE]


@pytest.mark.parametrize(
    ("changes", "words_"),
    [
        ({"probe": []}, "probe set is empty"),
        ({"probe": "one text"}, "a single text"),
        ({"probe": [*PROBE, "text"]}, "1 of the 9 probe samples have no target"),
        ({"every": 0}, "every is 0"),
        ({"focal_depth": -1}, "focal_depth is -1"),
        ({"most_share": 0.0}, "most_share is 0.0"),
        ({"most_share": 1.5}, "most_share is 1.5"),
        ({"stop": "tired"}, '"tired" is not a rule to stop by; choose from blind confidence'),
        ({"keep": "loss"}, '"loss" is not a rule to keep by; choose from accuracy, confidence, effort'),
        ({"probe": ["a text"], "stop": "blind confidence"}, "which answers are right"),
        ({"probe": ["a text"], "keep": "accuracy"}, "which answers are right"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words_: str) -> None:
    refuses(lambda: hl.EffortCallback(**{"probe": PROBE, **changes}), InputError, words_)


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(kind: type[HyperLensError], message: str, tokenizer: Any = build_tokenizer, **changes: Any) -> None:
        trainer = make_trainer(tmp_path, make_light(**changes), processing_class=tokenizer())
        refuses(trainer.train, kind, message)
        assert trainer.state.global_step == 0

    begin(InputError, "no tokenizer", tokenizer=lambda: None)
    begin(InputError, f"focal depth {LAYERS} leaves no state", focal_depth=LAYERS)
    precious = write(tmp_path / "best" / "notes.txt", "precious")
    begin(ArtefactError, "was not written by EffortCallback", keep="effort")
    assert precious.read_text() == "precious"
    monkeypatch.setattr(probing, "AcceleratorState", lambda: SimpleNamespace(distributed_type=SimpleNamespace(name="FSDP")))
    begin(ModelError, "sharded over processes")


def test_a_base_of_another_probe_set_or_lens_is_refused(tmp_path: Path, blind: Path) -> None:
    identity = json.loads(blind.read_text())["probe"]
    assert keeping.find_base(blind, identity)["accuracy"].tolist() == [1.0] * 24
    for part, other in (("texts", "0"), ("lens", {"focal depth": 1}), ("layers", 3)):
        refuses(
            lambda part=part, other=other: keeping.find_base(blind, identity | {part: other}), InputError, f"its {part} differ"
        )
    odd = write(tmp_path / "odd.json", "{}")
    refuses(lambda: keeping.find_base(odd, identity), ArtefactError, "holds no base that can be read")
