"""What one pass of a lens says, as a row of the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from hyperlens import effort
from hyperlens.contrast import (
    estimate_auroc,
    estimate_curve,
    estimate_matched_trend,
    estimate_mean,
    estimate_trend,
)
from hyperlens.evaluation.evaluation import Cost, Nearness, Row, Separation
from hyperlens.evaluation.sums import Sums
from hyperlens.lenses import Lens
from hyperlens.neighbours import find_prediction_depth
from hyperlens.trajectory import Trajectory, average_tokens


@dataclass(frozen=True)
class Read:
    """What one pass of a lens gave: the readings of every token, the token that follows each, which of them belong to an
    answer, and the sums over all of them."""

    lens: Lens
    trajectory: Trajectory
    following: np.ndarray
    answers: np.ndarray
    sums: Sums

    @cached_property
    def answered(self) -> Trajectory:
        """The tokens that belong to an answer."""
        return replace(self.trajectory, data=self.trajectory.data.isel(token=np.flatnonzero(self.answers)))


def join_parts(trajectory: Trajectory, owners: np.ndarray) -> Trajectory:
    """The trajectory with the parts of each text as one sample, labelled as its first part; `owners` `[part]` numbers texts."""
    _, first, texts = np.unique(owners, return_index=True, return_inverse=True)
    data = trajectory.data.assign_coords(sample=("token", texts[trajectory.data["sample"].values]))
    return replace(trajectory, data=data, samples=trajectory.samples.iloc[first].reset_index(drop=True))


def describe_output(read: Read) -> dict[str, Any]:
    """What the model itself says of the texts: its next-token loss, and of the answers its mean confidence, and the share of
    the texts whose answer is its own top token at each place."""
    data, tokens = read.trajectory.data, len(read.following)
    right = (data["output_id"].values == read.following)[read.answers].astype(float)
    confidence = average_tokens(read.answered, data["output_probability"].values[read.answers].astype(float))
    return {
        "next_token_loss": float(read.sums.average_loss(0, 0, tokens)[0]),
        "confidence": float(confidence.mean()),
        "accuracy": float((average_tokens(read.answered, right) == 1).mean()),
    }


def measure_states(read: Read, depth: int, seed: int) -> dict[str, np.ndarray]:
    """KL with the ends of its interval, bias and next-token loss of the states 0 … L: float64 `[state]` each."""
    layers, tokens = read.trajectory.layers, len(read.following)
    kl, low, high = estimate_curve(_weigh_kl(read, depth), seed)
    bias, loss = read.sums.measure_bias(depth, layers), read.sums.average_loss(depth, layers, tokens)
    return {"kl": kl, "kl_low": low, "kl_high": high, "bias": bias, "next_token_loss": loss}


def make_row(name: str, read: Read, depth: int, states: Mapping[str, np.ndarray], common: int, cost: Cost, seed: int) -> Row:
    """The row of one lens at one focal depth, whose values by state are `states`; every row can change the first `common`."""
    inner, tokens = read.trajectory.layers - depth, _read_answers(read, depth, common)
    texts = average_tokens(read.answered, np.stack(list(tokens.values()), 1))
    by_text = dict(zip(tokens, texts.T, strict=True))
    answer_kl = _weigh_texts(read.answered, by_text["kl"][:, None], tokens["kl"].mean())
    return Row(
        name=name,
        lens=read.lens.describe(),
        focal_depth=depth,
        states=inner,
        inner=_average_states(read, depth, states, inner, seed),
        common=_average_states(read, depth, states, common, seed),
        answer_kl=estimate_mean(answer_kl[:, 0], seed),
        prediction_depth=estimate_mean(by_text["prediction_depth"], seed),
        resolution=estimate_mean(by_text["resolution"], seed),
        effort=estimate_mean(by_text["effort"], seed),
        common_effort=estimate_mean(by_text["common_effort"], seed),
        separation=tuple(_separate(read.answered.samples, by_text, seed)),
        cost=cost,
    )


def _read_answers(read: Read, depth: int, common: int) -> dict[str, np.ndarray]:
    """What is measured of each token of an answer: float64 `[token]` each."""
    answered = read.answered
    confidence = answered.confidence(depth).astype(float)
    rank = answered.data["rank"].sel(focal_depth=depth).values[:, : answered.layers - depth + 1]
    return {
        "kl": answered.data["kl_to_output"].sel(focal_depth=depth).values[:, :common].astype(float).mean(1),
        "prediction_depth": find_prediction_depth(rank),
        "resolution": effort.measure_resolution(confidence),
        "effort": effort.measure_effort(confidence),
        "common_effort": effort.measure_effort(np.concatenate([confidence[:, :common], confidence[:, -1:]], 1)),
        "confidence": confidence[:, -1],
    }


def _average_states(read: Read, depth: int, states: Mapping[str, np.ndarray], count: int, seed: int) -> Nearness:
    """How near the lens is to the output over the first `count` states."""
    texts = _weigh_kl(read, depth)[:, :count].mean(1)
    bias, loss = (float(states[each][:count].mean()) for each in ("bias", "next_token_loss"))
    return Nearness(estimate_mean(texts, seed), bias, loss)


def _weigh_kl(read: Read, depth: int) -> np.ndarray:
    """Values whose mean over texts is the mean KL over tokens: `[text, state]`."""
    kl = read.trajectory.data["kl_to_output"].sel(focal_depth=depth).values.astype(float)
    return _weigh_texts(read.trajectory, average_tokens(read.trajectory, kl), kl.mean(0))


def _weigh_texts(trajectory: Trajectory, means: np.ndarray, mean: np.ndarray | float) -> np.ndarray:
    """Values whose mean over texts is the mean over tokens, from the `means` of each text: `[text, …]`.

    That mean is a ratio R = Σ s_i / Σ n_i of sums over texts; R + (s_i − R·n_i)/n̄ has its mean and, to first order, its error.
    """
    counts = np.bincount(trajectory.data["sample"].values, minlength=len(means))[:, None]
    return mean + (means - mean) * counts / counts.mean()


def _separate(samples: pd.DataFrame, by_text: Mapping[str, np.ndarray], seed: int) -> Iterator[Separation]:
    """How effort follows the levels of each task that has at least two of them."""
    levels = samples["level"].to_numpy(dtype=float, na_value=np.nan)
    for task in dict.fromkeys(samples["task"]):
        mine = (samples["task"] == task).to_numpy() & ~np.isnan(levels)
        if len(there := np.unique(levels[mine])) < 2:
            continue
        omega, common, confidence = (by_text[name][mine] for name in ("effort", "common_effort", "confidence"))
        easy, hard = (omega[levels[mine] == level] for level in (there[0], there[-1]))
        yield Separation(
            task,
            tuple(int(level) for level in there),
            estimate_trend(levels[mine], omega, seed),
            estimate_trend(levels[mine], common, seed),
            estimate_matched_trend(levels[mine], omega, confidence, seed=seed),
            estimate_auroc(easy, hard, seed),
        )
