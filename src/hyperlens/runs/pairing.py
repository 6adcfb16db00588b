"""Two sides that read the same samples alike: chosen, refused where they did not, and put together sample by sample."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from hyperlens.artefact import to_json
from hyperlens.errors import InputError
from hyperlens.runs.caveats import describe_lens, pick_main
from hyperlens.runs.run import Run, cell_names, read_entries, read_samples
from hyperlens.runs.spec import ModelSpec, Study
from hyperlens.runs.store import SAMPLES
from hyperlens.runs.tokens import read_task

READ_ALIKE = {"read": "read as", "max_new_tokens": "tokens to write", "stop": "stops"}
"""What tasks have to share beside their samples, and how it is said."""
MEASURED = {"accuracy": "correct", "confidence": "confidence", "read": "read"}
"""Measures that have one column for all depths."""
BY_DEPTH = ("effort", "struggle", "commit")
LABELS = ("task", "spec", "sample", "level", "id")


@dataclass(frozen=True)
class Side:
    """One model of a run, read through one lens."""

    run: Run
    model: str
    lens: str

    @cached_property
    def document(self) -> dict[str, Any]:
        """What the run keeps of the model."""
        return self.run.models[self.model]

    @property
    def lens_document(self) -> dict[str, Any]:
        """What the run keeps of the lens on this model."""
        return self.document["lenses"][self.lens]

    @property
    def said(self) -> str:
        """The model and the run that read it."""
        return f"{self.model} ({self.run.folder.name})"

    def describe(self) -> dict[str, Any]:
        """Which model it is, as a comparison keeps it."""
        kept = {name: self.document.get(name) for name in ("source", "fingerprint", "base", "dtype", "layers")}
        manifest = self.run.manifest
        return {
            "folder": str(self.run.folder),
            "model": self.model,
            **kept,
            "versions": manifest.get("versions", {}),
            "created": manifest.get("created"),
            "seed": manifest.get("seed"),
        }

    def read_rows(self, depths: Collection[int]) -> pd.DataFrame:
        """The sample rows of this side, without what a comparison does not need."""
        store = self.run.store
        mine = {
            shard: entry
            for shard, entry in read_entries(store).items()
            if cell_names(store, shard.cell)[:2] == (self.model, self.lens)
        }
        others = set(self.lens_document["focal_depths"]) - set(depths)
        left = {f"{name}@{depth}" for name in BY_DEPTH for depth in others}
        left |= {f"common_effort@{depth}" for depth in self.lens_document["focal_depths"]}
        return read_samples(store, mine, {*left, "generated", "cut", "unknown", "tokens"})


def choose_sides(
    base: Run, tuned: Run | None, base_model: str | None, tuned_model: str | None, lens: str | None
) -> tuple[Side, Side]:
    """The two sides that are meant; of one run with two models the first is the base. Raises InputError."""
    if tuned is None:
        tuned, names = base, list(base.models)
        if base_model is None and tuned_model is None and len(names) == 2:
            base_model, tuned_model = names
        if len(names) < 2:
            raise InputError(f"{base.folder} has only the model {names[0]}; give a second run, or another model, to compare")
    return Side(base, *base.choose_pair(base_model, lens)), Side(tuned, *tuned.choose_pair(tuned_model, lens))


def read_alike(side: Side, model: ModelSpec) -> Study:
    """The study that reads another model as a side was read: the same samples, its one lens, the focal depths that it had.

    A tuned lens then reads what its model became, as a transfer.
    """
    study = side.run.store.study
    place = [spec.name for spec in study.models].index(side.model)
    lens = next(one for one in study.lenses if one.name == side.lens)
    more: dict[str, Any] = {"focal_depths": tuple(side.lens_document["focal_depths"])}
    if lens.kind == "tuned":
        more |= {"path": study.locate_lens(lens, study.models[place]), "transfer": True}
    return replace(study, models=(model,), lenses=(replace(lens, **more),), contrasts=())


def check_comparable(before: Side, after: Side) -> tuple[int, ...]:
    """The focal depths that both sides were read at. Raises InputError, saying what differs and how to make them alike."""
    check_kin((before.said, after.said), (before.document, after.document))
    for finder in (_find_other_lens, _find_other_tasks):
        for difference in finder(before, after):
            raise InputError(difference)
    depths = [tuple(side.lens_document["focal_depths"]) for side in (before, after)]
    common = tuple(depth for depth in depths[0] if depth in depths[1])
    if not common:
        first, second = (", ".join(map(str, each)) for each in depths)
        raise InputError(
            f"{before.said} was read at the focal depths {first}, {after.said} at {second}, none of which is the same; "
            f"{_advise(before, after)}"
        )
    return common


def pick_depth(before: Side, after: Side, common: Collection[int], focal_depth: int | None) -> int:
    """The main depth: the given one, else what was chosen for the base, or for the tuned one, or the deepest. Raises
    InputError."""
    if focal_depth is not None and focal_depth not in common:
        raise InputError(f"focal depth {focal_depth} was not read on both sides; choose from {', '.join(map(str, common))}")
    if focal_depth is not None:
        return focal_depth
    usual = (pick_main(before.lens_document), pick_main(after.lens_document))
    return next((depth for depth in usual if depth in common), max(common))


def pair_samples(before: Side, after: Side, depths: Collection[int]) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The rows of both sides, a pair at the same place, in the order of the base's study; and how many rows have no partner.

    Raises InputError where there is no pair.
    """
    frames = before.read_rows(depths), after.read_rows(depths)
    specs = pd.Index([spec.name for spec in before.run.store.study.tasks])
    keys = [specs.get_indexer(pd.Index(frame["spec"])) * 2**32 + frame["sample"].to_numpy() for frame in frames]
    shared, *places = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    if not len(shared):
        raise InputError(f"no sample was read by both {before.said} and {after.said}; there is nothing to compare")
    first, second = (frame.iloc[place].reset_index(drop=True) for frame, place in zip(frames, places, strict=True))
    return first, second, sum(map(len, frames)) - 2 * len(shared)


def take_columns(frame: pd.DataFrame, depths: Collection[int]) -> dict[str, np.ndarray]:
    """What a comparison measures, as floats with NaN where unknown: `accuracy`, `effort@2` …"""
    names = MEASURED | {name: name for name in (f"{name}@{depth}" for name in BY_DEPTH for depth in depths)}
    return {name: frame[column].to_numpy(dtype=float, na_value=np.nan) for name, column in names.items()}


def check_kin(names: tuple[str, str], documents: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
    """That one model may have been made of the other, by what `measure.describe_kin` says of them. Raises InputError where
    they have other numbers of layers, or one is an adapter of another base."""
    _check_layers(names, documents)
    first, second = ({document["fingerprint"], document.get("base")} - {None} for document in documents)
    adapters = [place for place in (1, 0) if "base" in documents[place]]
    if adapters and documents[0]["dtype"] == documents[1]["dtype"] and not first & second:
        raise InputError(
            f"{names[adapters[0]]} is an adapter of another base than {names[1 - adapters[0]]}, since the weights below it "
            "have another fingerprint; compare it with the base that its adapter_config.json names"
        )


def check_outlines(names: tuple[str, str], outlines: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
    """The same as far as configurations tell, which `models.loading.outline_source` reads before anything is measured. Raises
    InputError where an adapter is of a base of another kind or width, too."""
    _check_layers(names, outlines)
    said = [f"a {one['kind']} of width {one['width']}" for one in outlines]
    adapters = [place for place in (1, 0) if outlines[place]["adapter"]]
    if adapters and said[0] != said[1]:
        mine, other = adapters[0], 1 - adapters[0]
        raise InputError(
            f"{names[mine]} is an adapter of another base ({said[mine]}) than {names[other]} ({said[other]}); compare it with "
            "the base that its adapter_config.json names"
        )


def _check_layers(names: tuple[str, str], documents: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
    layers = [document["layers"] for document in documents]
    if layers[0] != layers[1]:
        raise InputError(
            f"{names[0]} has {layers[0]} layers and {names[1]} {layers[1]}: effort can be compared only between a model and "
            "what was made of it; give two such models"
        )


def _find_other_lens(before: Side, after: Side) -> Iterator[str]:
    """Lenses of another kind, context, way or training."""
    said = [describe_lens(side.lens_document) for side in (before, after)]
    trained = [str(side.lens_document.get("fingerprint")) for side in (before, after)]
    if said[0] == said[1] and trained[0] != trained[1]:
        said = [f"{one} ({mark[:8]})" for one, mark in zip(said, trained, strict=True)]
    if said[0] != said[1]:
        yield f"{before.said} was read through the lens {said[0]}, {after.said} through {said[1]}; {_advise(before, after)}"


def _find_other_tasks(before: Side, after: Side) -> Iterator[str]:
    """Tasks that one side has not, that were read otherwise, or that have other samples."""
    first, second = ({task["name"]: task for task in side.run.store.tasks} for side in (before, after))
    for one, here, there in ((before, first, second), (after, second, first)):
        if missing := [name for name in here if name not in there]:
            other = after if one is before else before
            yield f"{one.said} has read {', '.join(missing)}, which {other.said} has not; {_advise(before, after)}"
    for name, task in first.items():
        for field, what in READ_ALIKE.items():
            if task[field] != second[name][field] and (field == "read" or task["read"] == "generated"):
                yield (
                    f"{name} was measured differently ({what} {_say(task[field])} in {before.said}, "
                    f"{_say(second[name][field])} in {after.said}); {_advise(before, after)}"
                )
        if task["digest"] != second[name]["digest"]:
            yield f"{_count_alike(before, after, name)}; {_advise(before, after)}"


def _count_alike(before: Side, after: Side, name: str) -> str:
    """How many samples of a task both sides drew."""
    columns = [column for column in SAMPLES.names if column != "turn"]
    drawn = []
    for side in (before, after):
        place = [spec.name for spec in side.run.store.study.tasks].index(name)
        drawn.append(Counter(map(to_json, read_task(side.run.store, place, columns).to_pylist())))
    counts = [each.total() for each in (*drawn, drawn[0] & drawn[1])]
    alike = "in another order" if counts[0] == counts[1] == counts[2] else f"and {counts[2]} of them are the same"
    return f"the samples of {name} differ: {before.said} has {counts[0]}, {after.said} has {counts[1]}, {alike}"


def _advise(before: Side, after: Side) -> str:
    """The command that reads the second model as the first one was read."""
    command = ["hyperlens", "compare", str(before.run.folder), str(after.document.get("source", after.model))]
    return f"measure the second as the first was, with: {shlex.join(command)}"


def _say(value: Any) -> str:
    return ", ".join(map(repr, value)) or "none" if isinstance(value, list | tuple) else str(value)


def find_turned(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """That of two described sides the one before was made of the one after."""
    if before["base"] is not None and before["base"] == after["fingerprint"]:
        yield f"{before['model']} is an adapter on {after['model']}: is the order turned round?"


def find_other_makes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each way in which two described sides were not run alike."""
    versions = [", ".join(f"{name} {number}" for name, number in side["versions"].items()) for side in (before, after)]
    if versions[0] != versions[1]:
        yield f"The runs were made with different versions ({versions[0]}; {versions[1]}), so that last digits may differ."
    if before["dtype"] != after["dtype"]:
        told = ", and nothing tells that the adapter is of this base" if before["base"] or after["base"] else ""
        yield f"The models were read as {before['dtype']} and {after['dtype']}, whose rounding alone changes confidence{told}."
