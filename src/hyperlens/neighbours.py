"""Other people's numbers from the same trajectory, each with its formula, its source, and what the source leaves open.

Their authors define them on the logit lens (focal depth 0); here they are computed at every focal depth m that was read,
n = L − m states standing where the source has L layers. Arrays in, arrays out, the same line for numpy and torch:
`[..., n + 1]`, the states 0 … n of a trajectory, the last of them the model's own. docs/neighbours.md says where each
definition was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from array_api_compat import array_namespace

from hyperlens.effort import Array, find_first, find_lasting
from hyperlens.errors import InputError
from hyperlens.trajectory import EXIT_READING, STATE_READINGS, Trajectory, average_tokens

SETTLED_AT = 0.5
"""The threshold g of the deep-thinking ratio, in bits."""
DEEP_FROM = 0.85
"""The depth fraction ρ from which on settling counts as deep thinking."""
EXIT_AT = 0.9
"""The confidence λ at which a state would be exited. Ours: CALM calibrates it for each task."""


def find_settling(divergence: Array, threshold: float = SETTLED_AT) -> Array:
    """Settling depth: the first state l ≥ 1 whose running minimum of JSD(p_n, p_l) is at most `threshold`, in bits.

    `divergence[..., n + 1]` is `js_to_output`, in nats -> `[...]` in 1 … n, NaN where n = 0. The running minimum reaches the
    threshold where the divergence first does. Source: Chen et al. 2026 (arXiv 2602.13517), §2.2, over the outputs of layers
    1 … L. Open there: the unit. Bits, since their figure has values up to 0.96 and they try g = 0.75, both above ln 2 nats.

    >>> import numpy as np
    >>> float(find_settling(np.array([0.69, 0.6, 0.3, 0.5, 0.0])))
    2.0
    """
    distance = divergence[..., 1:] / math.log(2)
    return 1.0 + find_first(distance, distance <= threshold)


def measure_deep_thinking(divergence: Array, threshold: float = SETTLED_AT, fraction: float = DEEP_FROM) -> Array:
    """1 where a token settles at state ⌈ρ·n⌉ or later, else 0; its mean over an answer's tokens is the deep-thinking ratio.

    `divergence[..., n + 1]` is `js_to_output`, in nats -> `[...]`, NaN where n = 0. Source: Chen et al. 2026 (arXiv
    2602.13517), §2.2 and §3, g = 0.5 and ρ = 0.85. Ours: at a focal depth m the regime is a fraction of the n states left.
    """
    xp = array_namespace(divergence)
    settled = find_settling(divergence, threshold)
    first = math.ceil(round(fraction * (divergence.shape[-1] - 1), 9))  # 0.07 · 100 is a little more than 7
    return xp.where(xp.isnan(settled), settled, xp.astype(settled >= first, settled.dtype))


def measure_consistency(rank: Array) -> Array:
    """Internal consistency: share of the states l < n whose top token is the final one.

    `rank[..., n + 1]` is that of the model's own top token; a tie counts as top -> `[...]` in [0, 1]; NaN where n = 0, or
    where the last rank is not 0, since the reference is another token then. Source: Xie et al. 2024 (arXiv 2405.18711), read
    from the abstract and their code, which counts the final state too, (n·x + 1)/(n + 1), and decides between answer options
    by the quantile of each one's probability over the data set. Ours: the final state is left out, and the top token is what
    it is.
    """
    xp = array_namespace(rank)
    if rank.shape[-1] < 2:
        return xp.full_like(rank[..., -1], float("nan"))
    share = xp.mean(xp.astype(rank[..., :-1] == 0, rank.dtype), axis=-1)
    return _where_own(rank, share)


def find_prediction_depth(rank: Array) -> Array:
    """Prediction depth: the first state from which on the top token stays the model's own; n where none before n.

    `rank[..., n + 1]` is that of the model's own top token; a tie counts as top -> `[...]` in 0 … n; NaN as in
    `measure_consistency`. Source: Baldock et al. 2021 (arXiv 2106.09647), with nearest-neighbour probes; Belrose et al. 2023
    (arXiv 2303.08112), with a lens. On the logit lens it is the saturation event of Geva et al. 2022 (arXiv 2203.14680).
    """
    return _where_own(rank, find_lasting(rank[..., :-1], rank[..., :-1] == 0))


def find_agreement(rank: Array) -> Array:
    """The first state whose top token is the model's own, whether or not it stays; n where none before n.

    `rank` and NaN as in `find_prediction_depth`, which it never exceeds. Source: the oracle of CALM (Schuster et al. 2022,
    arXiv 2207.07061; their code), which exits there. Theirs begins after the first layer, ours with the embeddings, state 0.
    """
    return _where_own(rank, find_first(rank[..., :-1], rank[..., :-1] == 0))


def measure_convergence_gap(divergence: Array) -> Array:
    """Convergence gap: mean over the states l < n of KL(p_n ‖ p_l), in nats.

    `divergence[..., n + 1]` is `kl_to_output` -> `[...]` ≥ 0; NaN where n = 0. Source: Zhou 2026 (arXiv 2605.07282): the
    distance of each layer's distribution to the model's own final one, in nats of KL. Only its abstract and the beginning of
    its introduction could be read, so that the direction of KL (that of the tuned lens) and the mean over all states are ours.
    """
    xp = array_namespace(divergence)
    if divergence.shape[-1] < 2:
        return xp.full_like(divergence[..., -1], float("nan"))
    return xp.mean(divergence[..., :-1], axis=-1)


def find_exit(confidence: Array, threshold: float = EXIT_AT, first: int = 1) -> Array:
    """The state at which CALM would exit: the first, from `first` on, whose confidence is at least `threshold`; n where none.

    `confidence[..., n + 1]` is `gap` (softmax response), `state_cosine` (hidden-state saturation; from state 2 on, as the first
    layer's output has none before it) or `exit_probability` (its classifier) -> `[...]`; NaN where n < `first`. Source:
    Schuster et al. 2022 (arXiv 2207.07061); that equality exits, and from which layer on, is from their code. λ is ours.
    """
    xp = array_namespace(confidence)
    values = confidence[..., first:]
    always = xp.ones_like(values[..., -1:], dtype=xp.bool)
    return float(first) + find_first(values, xp.concat([values[..., :-1] >= threshold, always], axis=-1))


def find_decision_phases(margin: Array) -> tuple[Array, Array]:
    """Silent and decisive phase, in layers: before and after the state from which on the decision margin stays positive.

    `margin[..., n + 1]` is `decision_margin`, p(y) − max over v≠y of p(v) -> two `[...]` that add up to n; NaN where n = 0, or
    where the last margin is not positive: the model does not decide for y. Source: Shi et al. 2026 (arXiv 2605.07271), on
    multiple-choice questions with y the right answer. Only its abstract and quotations could be read: the margin is theirs,
    and that a sharp transition parts a phase without the right prediction from one with it; that the transition is the last
    change of sign is ours.
    """
    xp = array_namespace(margin)
    states = margin.shape[-1] - 1
    silent = find_lasting(margin, margin > 0)
    decided = (silent <= states) & (states > 0)
    silent = xp.where(decided, silent, xp.full_like(silent, float("nan")))
    return silent, states - silent


def _where_own(rank: Array, values: Array) -> Array:
    """The values, NaN where the reference is not the model's own top token in the end."""
    xp = array_namespace(rank)
    return xp.where(rank[..., -1] == 0, values, xp.full_like(values, float("nan")))


@dataclass(frozen=True)
class Number:
    """One of the numbers: the reading that it is computed from, its formula, its unit, and whose it is."""

    reading: str
    measure: Callable[[Array], Array]
    unit: str
    source: str


NUMBERS = {
    "deep_thinking": Number("js_to_output", measure_deep_thinking, "share of tokens", "arXiv 2602.13517"),
    "settling": Number("js_to_output", find_settling, "state", "arXiv 2602.13517"),
    "consistency": Number("rank", measure_consistency, "share of states", "arXiv 2405.18711"),
    "prediction_depth": Number("rank", find_prediction_depth, "state", "arXiv 2106.09647, 2303.08112"),
    "first_agreement": Number("rank", find_agreement, "state", "arXiv 2207.07061"),
    "convergence_gap": Number("kl_to_output", measure_convergence_gap, "nats", "arXiv 2605.07282"),
    "exit_softmax": Number("gap", find_exit, "state", "arXiv 2207.07061"),
    "exit_state": Number("state_cosine", lambda cosine: find_exit(cosine, first=2), "state", "arXiv 2207.07061"),
    "exit_classifier": Number(EXIT_READING, find_exit, "state", "arXiv 2207.07061"),
    "silent": Number("decision_margin", lambda margin: find_decision_phases(margin)[0], "layers", "arXiv 2605.07271"),
    "decisive": Number("decision_margin", lambda margin: find_decision_phases(margin)[1], "layers", "arXiv 2605.07271"),
}
"""Every number by name. Those of the state itself (`exit_state`, `exit_classifier`) are the same at all focal depths."""
NEEDED = tuple(dict.fromkeys(number.reading for number in NUMBERS.values() if number.reading != EXIT_READING))
"""The readings that all numbers need, but for the one that a fitted classifier gives."""


def measure_neighbours(trajectory: Trajectory) -> xr.Dataset:
    """The numbers that the trajectory's readings allow, float `[token, focal_depth]`; `attrs["missing"]` has the others, each
    with the reading that it needs.

    `deep_thinking` and `settling` (Chen et al. 2026), `consistency` (Xie et al. 2024), `prediction_depth` (Baldock et al.
    2021), `first_agreement`, `exit_softmax`, `exit_state` and `exit_classifier` (CALM), `convergence_gap` (Zhou 2026), `silent`
    and `decisive` (Shi et al. 2026): formulas and NaN in the functions of this module. Raises InputError where none of their
    readings is there.
    """
    read = trajectory.manifest["readings"]
    missing = {name: number.reading for name, number in NUMBERS.items() if number.reading not in read}
    if len(missing) == len(NUMBERS):
        raise InputError(
            f"this trajectory has none of the readings that the neighbours' numbers need; read {', '.join(NEEDED)}"
        )
    variables = {
        name: (
            ("token", "focal_depth"),
            np.stack([_measure(trajectory, number, depth) for depth in trajectory.focal_depths], -1),
        )
        for name, number in NUMBERS.items()
        if name not in missing
    }
    labels = {
        name: (("token",), trajectory.data[name].values) for name in ("sample", "position", "token_text", "reference_text")
    }
    return xr.Dataset(variables, {**labels, "focal_depth": list(trajectory.focal_depths)}, {"missing": missing})


def _measure(trajectory: Trajectory, number: Number, depth: int) -> np.ndarray:
    """One number of all tokens at one focal depth."""
    left = 0 if number.reading in (*STATE_READINGS, EXIT_READING) else depth
    values = trajectory.data[number.reading].sel(focal_depth=depth).values
    return number.measure(values[:, : trajectory.layers - left + 1].astype(np.float64))


def pool_neighbours(trajectory: Trajectory) -> xr.Dataset:
    """The numbers of whole texts, `[sample, focal_depth]`: means over their tokens, so that `deep_thinking` is the ratio.

    NaN tokens are left out, and counted in `left_out[number, sample, focal_depth]`. `attrs["missing"]` as in
    `measure_neighbours`. Raises InputError.
    """
    measured = measure_neighbours(trajectory)
    names = [str(name) for name in measured.data_vars]
    pooled = {name: (("sample", "focal_depth"), average_tokens(trajectory, measured[name].values)) for name in names}
    tokens = np.bincount(measured["sample"].values, minlength=len(trajectory.samples))
    unknown = [average_tokens(trajectory, np.isnan(measured[name].values).astype(float)) for name in names]
    left_out = np.rint(np.stack(unknown) * tokens[:, None]).astype(int)
    coordinates = {"sample": np.arange(len(tokens)), "focal_depth": list(trajectory.focal_depths), "number": names}
    variables = {**pooled, "left_out": (("number", "sample", "focal_depth"), left_out)}
    return xr.Dataset(variables, coordinates, measured.attrs)


def describe_neighbours(trajectory: Trajectory) -> dict[str, Any]:
    """The pooled numbers as `hyperlens trace --neighbours --json` prints them. Raises InputError."""
    pooled = pool_neighbours(trajectory)
    names = [name for name in NUMBERS if name in pooled]
    depths = [str(depth) for depth in trajectory.focal_depths]
    columns = {name: pooled[name].values.tolist() for name in names}
    return {
        "numbers": {name: {"unit": NUMBERS[name].unit, "source": NUMBERS[name].source} for name in names},
        "missing": pooled.attrs["missing"],
        "samples": [
            {name: dict(zip(depths, columns[name][row], strict=True)) for name in names}
            for row in range(len(trajectory.samples))
        ],
    }
