"""What the tests of tracing share: texts, small models, and when two trajectories are the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from families import build_family, build_tokenizer, random_ids
from plain import model_logits
from torch import Tensor

from hyperlens.models import Model, load_model
from hyperlens.trajectory import Trajectory

CONTEXTS: tuple[Any, ...] = ("jump", "cached")
SIDES: tuple[Any, ...] = ("right", "left")
TEXTS = [random_ids(1, length, seed)[0].tolist() for seed, length in enumerate((9, 17, 5, 12))]
"""Of different length, not in the order of it, some longer than the window of 8."""


@cache
def loaded(family: str) -> Model:
    """A model that no test changes."""
    return load_model(build_family(family), build_tokenizer())


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in ids)


def own_logits(model: Model, ids: Sequence[int]) -> Tensor:
    """The model's own logits `[token, vocabulary]` of one text."""
    return model_logits(model.network, torch.tensor([ids]))[0]


def same(one: Trajectory, other: Trajectory, bound: float = 1e-5) -> None:
    """The same readings of the same tokens."""
    assert one.focal_depths == other.focal_depths
    for name in one.data.variables:
        found, expected = one.data[name].values, other.data[name].values
        if name in ("top_ids",) or found.dtype.kind not in "f":
            assert np.array_equal(found, expected), name
        else:
            np.testing.assert_allclose(found, expected, rtol=bound, atol=bound, err_msg=str(name))
