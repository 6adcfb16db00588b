"""The formulas of cognitive effort: arrays in, arrays out, the same line for numpy and torch.

Each function takes `confidence[..., state]`: the probability of the reference token at the states 0 … n of one trajectory,
n = layers − focal depth. The last of them is the model's own confidence c_L; the n before it are what the lens can still
change. Sources: METHOD marks in the documentation; all formulas here are ours, since the paper's are not public.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

Array = Any
"""A floating-point numpy array or torch tensor; the result is of the same kind."""

ONSET_AT = 0.1
COMMIT_AT = 0.9
SMALLEST_GIVEN = 0.01
"""Below this c_L the progress towards a *given* token means nothing, and its effort is NaN."""
SMALLEST_VARIATION = 0.01
"""Where confidence moves less than this per token, a ratio to that movement means nothing, and it is NaN."""


def measure_progress(confidence: Array, guess: float = 0.0, smallest: float = 0.0) -> Array:
    """Share of the final confidence that each state has reached: r_l = clip((c_l − g)/(c_L − g), 0, 1).

    `confidence[..., n + 1]` -> `[..., n]` in [0, 1]. `guess` g is what guessing reaches (1/K among K answer options, 0 in the
    open vocabulary). NaN where c_L ≤ g or c_L < `smallest`. Differentiable; no gradient where it is clipped or NaN.

    >>> import numpy as np
    >>> measure_progress(np.array([0.0, 0.2, 0.4]))
    array([0. , 0.5])
    """
    xp = array_namespace(confidence)
    final = confidence[..., -1:]
    defined = (final > guess) & (final >= smallest)
    span = xp.where(defined, final - guess, xp.ones_like(final))
    progress = xp.clip((confidence[..., :-1] - guess) / span, 0.0, 1.0)
    return xp.where(defined, progress, xp.full_like(progress, float("nan")))


def measure_effort(confidence: Array, guess: float = 0.0, smallest: float = 0.0) -> Array:
    """Cognitive effort Ω = (1/n) Σ_{l<n} (1 − r_l): mean share of the final confidence still missing.

    `confidence[..., n + 1]` -> `[...]` in [0, 1]: 0 where the final confidence is there from the first state, 1 where it all
    comes in the last step. NaN where n = 0 or the progress is undefined. n·Ω is the effort in layers. Differentiable.

    >>> import numpy as np
    >>> float(measure_effort(np.array([0.0, 0.2, 0.4])))
    0.75
    """
    xp = array_namespace(confidence)
    if confidence.shape[-1] < 2:
        return xp.full_like(confidence[..., -1], float("nan"))
    return xp.mean(1.0 - measure_progress(confidence, guess, smallest), axis=-1)


def measure_shortfall(effort: Array, base: Array, aim: str = "keep", shift: float = 0.0) -> Array:
    """How far the effort Ω of each token is from where it is wanted beside that of the base: `[...]`, `[...]` -> `[...]` ≥ 0.

    To "keep" it, max(0, Ω_base − Ω): more effort than the base's costs nothing. To "raise" it, max(0, Ω_base + shift − Ω); to
    "lower" it, max(0, Ω − Ω_base + shift). Where either is NaN, 0 and no gradient: count those apart. Differentiable.

    >>> import numpy as np
    >>> measure_shortfall(np.array([0.5, 0.75, np.nan]), np.array([0.75, 0.5, 0.5]))
    array([0.25, 0.  , 0.  ])
    """
    xp = array_namespace(effort, base)
    gap = {"keep": base - effort, "raise": base + shift - effort, "lower": effort - base + shift}[aim]
    return xp.where(xp.isnan(gap) | (gap <= 0), xp.zeros_like(gap), gap)


def measure_raw_area(confidence: Array) -> Array:
    """Area between the final confidence and the trajectory, (1/n) Σ_{l<n} (c_L − c_l): `[..., n + 1]` -> `[...]` in [−1, 1].

    Small for every token of which the model is never sure, which is why Ω is relative to c_L. NaN where n = 0.
    """
    xp = array_namespace(confidence)
    if confidence.shape[-1] < 2:
        return xp.full_like(confidence[..., -1], float("nan"))
    return xp.mean(confidence[..., -1:] - confidence[..., :-1], axis=-1)


def find_onset(progress: Array) -> Array:
    """First state at which the progress is at least 0.1, n where none is: `progress[..., n]` -> `[...]`; NaN stays NaN."""
    return find_first(progress, progress >= ONSET_AT)


def find_commit(progress: Array) -> Array:
    """First state from which the progress stays at least 0.9, n where none is: `progress[..., n]` -> `[...]`; NaN stays NaN."""
    return find_lasting(progress, progress >= COMMIT_AT)


def find_first(values: Array, reached: Array) -> Array:
    """Index of the first state where `reached`, n where none: `[..., n]` -> `[...]`; NaN where a value is (or n = 0)."""
    xp = array_namespace(values)
    if values.shape[-1] == 0:
        return xp.full(values.shape[:-1], float("nan"), dtype=values.dtype)
    yet = xp.cumulative_sum(xp.astype(reached, values.dtype), axis=-1) > 0
    first = xp.sum(xp.astype(~yet, values.dtype), axis=-1)
    return xp.where(xp.any(xp.isnan(values), axis=-1), xp.full_like(first, float("nan")), first)


def find_lasting(values: Array, reached: Array) -> Array:
    """Index of the first state from which on all are `reached`, n where none: `[..., n]` -> `[...]`; NaN as in `find_first`."""
    xp = array_namespace(values)
    missed = xp.astype(~reached, values.dtype)
    after = xp.flip(xp.cumulative_sum(xp.flip(missed, axis=-1), axis=-1), axis=-1)
    return find_first(values, after == 0)


def measure_volatility(confidence: Array) -> Array:
    """How much the confidence goes back and forth: Σ|Δc| − |c_n − c_0|, `[..., n + 1]` -> `[...]`, 0 where monotone."""
    xp = array_namespace(confidence)
    return _variation(confidence) - xp.abs(confidence[..., -1] - confidence[..., 0])


def measure_resolution(confidence: Array) -> Array:
    """Effective number of steps (Σ|Δc|)² / Σ(Δc)²: `[..., n + 1]` -> `[...]` in [1, n]; NaN where flat.

    Near 1 the confidence comes in one jump. It counts back-and-forth as steps: read it beside the volatility.
    """
    xp = array_namespace(confidence)
    squares = xp.sum(_steps(confidence) ** 2, axis=-1)
    flat = squares == 0
    steps = _variation(confidence) ** 2 / xp.where(flat, xp.ones_like(squares), squares)
    return xp.where(flat, xp.full_like(steps, float("nan")), steps)


def measure_gain(routed: Array, logit: Array) -> Array:
    """Magnification: how much more the confidence moves from state to state at a focal depth m than in the logit lens.

    Σ|c^(m)_{l+1} − c^(m)_l| / Σ|c^(0)_{l+1} − c^(0)_l|, both sums over all tokens and over l < L − m: a ratio of sums, never a
    mean of ratios. `routed[token, L − m + 1]`, `logit[token, L + 1]` -> a number ≥ 0; NaN where the logit lens moves by less
    than 0.01 per token. More than 1 alone is no evidence of magnification: by state L − m the routed confidence has arrived,
    and the logit lens is cut off before it does. Read it beside `measure_path_ratio`. Source: METHOD §6.
    """
    return _divide_sums(_variation(routed), _variation(logit[..., : routed.shape[-1]]))


def measure_path_ratio(routed: Array, logit: Array) -> Array:
    """Total movement of the routed confidence, l ≤ L − m, by that of the logit lens over its full path, l ≤ L.

    `routed[token, L − m + 1]`, `logit[token, L + 1]` -> a number ≥ 0, 1 where both rise without turning back and begin alike;
    NaN where the logit lens moves by less than 0.01 per token.
    """
    return _divide_sums(_variation(routed), _variation(logit))


def measure_directional_gain(routed: Array, logit: Array) -> Array:
    """Σ|∂c^(m)| / Σ|∂c^(0)| of the derivatives of the confidence along the model's own next step, h_{l+1} − h_l.

    `routed[token, L − m]`, `logit[token, L − m]` -> a number ≥ 0; NaN where the derivatives of the logit lens are below 0.01
    per token. It asks what an infinitesimal step does, and so needs no arrival.
    """
    xp = array_namespace(routed, logit)
    return _divide_sums(xp.sum(xp.abs(routed), axis=-1), xp.sum(xp.abs(logit[..., : routed.shape[-1]]), axis=-1))


def measure_monotonicity(routed: Array, logit: Array) -> Array:
    """Spearman's correlation, over tokens, of the routed and the logit lens's confidence at each state l < L − m.

    `routed[token, L − m + 1]`, `logit[token, L + 1]` -> `[L − m]` in [−1, 1]: 1 where routing keeps the order of tokens, so
    that it magnifies rather than distorts; NaN where all tokens are alike.
    """
    xp = array_namespace(routed, logit)
    states = routed.shape[-1] - 1
    if states == 0:
        return routed[0, :0]
    return xp.stack([_correlate(_rank(routed[:, state]), _rank(logit[:, state])) for state in range(states)])


def _divide_sums(above: Array, below: Array) -> Array:
    """Sum of `above[token]` by sum of `below[token]`; NaN where that is less than 0.01 per token."""
    xp = array_namespace(above, below)
    total = xp.sum(below)
    defined = total >= SMALLEST_VARIATION * below.shape[0]
    return xp.where(defined, xp.sum(above) / xp.where(defined, total, xp.ones_like(total)), xp.full_like(total, float("nan")))


def _rank(values: Array) -> Array:
    """Ranks from 1 of `values[token]`, equal values sharing their mean rank."""
    xp = array_namespace(values)
    values = xp.asarray(values, copy=True)  # torch warns about columns of a larger array
    ordered = xp.sort(values)
    below, upto = (xp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return xp.astype(below + upto + 1, values.dtype) / 2


def _correlate(first: Array, second: Array) -> Array:
    """Pearson's correlation of two vectors; NaN where either is constant."""
    xp = array_namespace(first, second)
    first, second = first - xp.mean(first), second - xp.mean(second)
    size = xp.sqrt(xp.sum(first * first) * xp.sum(second * second))
    varied = size > 0
    return xp.where(
        varied, xp.sum(first * second) / xp.where(varied, size, xp.ones_like(size)), xp.full_like(size, float("nan"))
    )


def _steps(confidence: Array) -> Array:
    return confidence[..., 1:] - confidence[..., :-1]


def _variation(confidence: Array) -> Array:
    xp = array_namespace(confidence)
    return xp.sum(xp.abs(_steps(confidence)), axis=-1)
