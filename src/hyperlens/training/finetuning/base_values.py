"""The effort of the base at every answer token of the examples, measured once, before anything is trained, and kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyperlens.artefact import read_document, read_table, write_artefact
from hyperlens.certificate import pad_texts
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError
from hyperlens.models import Model
from hyperlens.splice import Inputs, Probes, at_rest
from hyperlens.tracing import Limits
from hyperlens.tracing.reading import show_progress
from hyperlens.training.checkpoints import list_differences
from hyperlens.training.effort_term import choose_states, read_effort
from hyperlens.training.finetuning.examples import Example, Examples
from hyperlens.training.finetuning.recipe import FineTuneRecipe

KIND, TABLE = "base values", "effort"
MOST_UNKNOWN = 0.2
"""Share of the answer tokens without an effort, above which a user is warned."""


@dataclass(frozen=True)
class BaseValues:
    """Ω of the base at each measured token of the examples, in their order; NaN where its confidence is below 0.01.

    `identity` says of which model, examples, states and focal depth they are; `path` is where they are kept, if anywhere.
    """

    effort: np.ndarray = field(repr=False)
    identity: dict[str, Any]
    path: Path | None = None

    @property
    def undefined(self) -> int:
        """Tokens whose effort means nothing, and which the effort term leaves out."""
        return int(np.isnan(self.effort).sum())

    def split(self, examples: Examples) -> list[list[float]]:
        """For each example, the effort at each of its tokens; NaN at those that are not measured."""
        parts = np.split(self.effort, np.cumsum([len(row.measured) for row in examples.rows])[:-1])
        return [_spread(row, part) for row, part in zip(examples.rows, parts, strict=True)]


def keep_base_values(model: Model, examples: Examples, recipe: FineTuneRecipe, folder: Path | None) -> BaseValues:
    """The base's values from `folder`, or measured and written there; only measured without a folder.

    Raises ArtefactError where the folder holds those of another model, other examples or other settings, or is damaged.
    """
    identity = _identify(model, examples, recipe)
    if folder is not None and folder.exists():
        return _read(folder, examples, identity)
    effort = measure_base(model, examples, recipe)
    if folder is None:
        return BaseValues(effort, identity)
    undefined = int(np.isnan(effort).sum())
    manifest = {"kind": KIND, **identity, "tokens": len(effort), "undefined": undefined}
    return BaseValues(effort, identity, write_artefact(folder, manifest, {TABLE: _tabulate(examples, effort)}))


@torch.no_grad()
def measure_base(model: Model, examples: Examples, recipe: FineTuneRecipe) -> np.ndarray:
    """Ω at each measured token, as the effort term reads it: at the recipe's focal depth, over its states.

    Raises InputError where the focal depth leaves no state.
    """
    splice, states = model.splice, choose_states(model.layers, recipe.focal_depth, recipe.states)
    kept: dict[int, np.ndarray] = {}
    with splice.lock, at_rest(model.network), show_progress(Limits(), "effort of the base", len(examples.rows)) as advance:
        for numbers in _batch(model, examples):
            inputs, probes, targets = _pad(model, [examples.rows[number] for number in numbers])
            recorded = splice.run(inputs, record=[*states, splice.depth], read=False).states
            effort = read_effort(splice, inputs, recorded, states, recipe.focal_depth, probes, targets)
            for row, number in enumerate(numbers):
                kept[number] = effort[probes.rows == row].double().cpu().numpy()
            advance(len(numbers))
    return np.concatenate([kept[number] for number in range(len(examples.rows))])


def check_known(values: BaseValues) -> None:
    """Warn where more than a fifth of the answer tokens have no effort in the base; InputError where none has one."""
    unknown, count = values.undefined, len(values.effort)
    if unknown == count:
        raise InputError(
            f"none of the {count} answer tokens has an effort in the base, whose confidence in each is below 0.01, so that "
            "there is none to keep; leave the effort term away"
        )
    if unknown > MOST_UNKNOWN * count:
        warnings.warn(
            f"{unknown} of {count} answer tokens have no effort in the base, whose confidence in them is below 0.01; the "
            "effort term minds the others alone",
            HyperLensWarning,
            stacklevel=3,
        )


def _batch(model: Model, examples: Examples) -> Iterator[list[int]]:
    """Examples of similar length together, about as many tokens as a trace has in a batch."""
    alone = "right" not in model.certificate.paddings
    order = sorted(range(len(examples.rows)), key=lambda number: -len(examples.rows[number].ids))
    while order:
        each = 1 if alone else max(1, Limits().batch_tokens // len(examples.rows[order[0]].ids))
        yield order[:each]
        order = order[each:]


def _pad(model: Model, rows: Sequence[Example]) -> tuple[Inputs, Probes, Int[Tensor, "probe"]]:
    """The examples as a batch, the places that predict what is measured, and the tokens that belong there."""
    device = model.splice.device
    inputs, _ = pad_texts([torch.tensor(row.ids, device=device) for row in rows], "right", model.splice.filler)
    places = [(number, place) for number, row in enumerate(rows) for place in row.measured]
    where = torch.tensor(places, device=device)
    return inputs, Probes(where[:, 0], where[:, 1] - 1), inputs.ids[where[:, 0], where[:, 1]]


def _identify(model: Model, examples: Examples, recipe: FineTuneRecipe) -> dict[str, Any]:
    return {
        "model": model.fingerprint,
        "examples": examples.fingerprint,
        "focal_depth": recipe.focal_depth,
        "states": list(choose_states(model.layers, recipe.focal_depth, recipe.states)),
        "context": "jump",
    }


def _tabulate(examples: Examples, effort: np.ndarray) -> pa.Table:
    places = [(number, place, row.ids[place]) for number, row in enumerate(examples.rows) for place in row.measured]
    columns = dict(zip(("example", "place", "token"), zip(*places, strict=True), strict=True))
    return pa.table({**{name: pa.array(column, pa.int32()) for name, column in columns.items()}, "effort": pa.array(effort)})


def _read(folder: Path, examples: Examples, identity: dict[str, Any]) -> BaseValues:
    manifest = read_document(folder)
    if differing := list_differences({name: manifest.get(name) for name in ("kind", *identity)}, {"kind": KIND, **identity}):
        raise ArtefactError(
            f"{folder} holds other base values ({'; '.join(differing)}); choose another --out, or remove the folder"
        )
    table = read_table(folder, TABLE)
    expected = _tabulate(examples, np.zeros(sum(len(row.measured) for row in examples.rows)))
    if table.schema != expected.schema or not table.drop_columns("effort").equals(expected.drop_columns("effort")):
        raise ArtefactError(f"{folder} is damaged: its tokens are not those of the examples; remove the folder")
    return BaseValues(table["effort"].to_numpy(), identity, folder)


def _spread(row: Example, effort: Float[np.ndarray, "token"]) -> list[float]:
    spread = np.full(len(row.ids), np.nan)
    spread[list(row.measured)] = effort
    return spread.tolist()
