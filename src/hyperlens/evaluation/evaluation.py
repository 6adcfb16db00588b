"""What an evaluation of lenses found: one row per lens and focal depth, and values by state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from hyperlens.notebook import draw_effort, draw_table, draw_trajectory, frame
from hyperlens.resampling import Interval
from hyperlens.spelling import say_interval, say_number

DEFINITIONS = {
    "kl": "mean over tokens of KL(p || q), p the model's distribution and q the lens's; nats",
    "bias": "KL(mean over tokens of p || mean over tokens of q); nats",
    "next_token_loss": "mean over tokens of -ln q(next token); nats",
    "prediction_depth": "first state from which on the lens's top token is the model's",
    "effort": "mean over l < L - m of 1 - clip(c_l / c_L, 0, 1), c = probability of the model's top token",
    "resolution": "(sum of steps of c)^2 / sum of squared steps",
    "inner, common": "means over the states l < L - m; over those that every row can change",
    "answer_kl": "kl over the tokens that predict the answers, mean over the common states",
    "intervals": "95 %; texts are drawn again, each with all its parts",
    "passes": "layers x tokens that are run, by those of one plain pass; measured: by its wall-clock time",
}


@dataclass(frozen=True)
class Nearness:
    """How near a lens is to the model's output, as the mean over some states of what it is at each; all in nats.

    `kl` KL(p ‖ q), mean over tokens, p the model's distribution and q the lens's; its interval is over texts. `bias`
    KL(p̄ ‖ q̄), p̄ and q̄ the means over tokens of p and q; never above `kl`. `next_token_loss` mean over tokens of
    −ln q(next token).
    """

    kl: Interval
    bias: float
    next_token_loss: float


@dataclass(frozen=True)
class Separation:
    """How effort follows the levels of a task: Spearman's rho of level and Ω; `common`, of Ω over the common states;
    `matched`, among texts of like confidence; `auroc` of the hardest level against the easiest, P(Ω hard > Ω easy)."""

    task: str
    levels: tuple[int, ...]
    rho: Interval
    common: Interval
    matched: Interval
    auroc: Interval


@dataclass(frozen=True)
class Cost:
    """What reading every token at one focal depth costs, alone.

    `passes` by arithmetic, in units of one plain forward pass: layers × tokens that are run, the pass itself included. Apart
    from it, `readouts` are the rows of logits per token, and `translators` the affine maps per token. `measured` is
    wall-clock time in that of a plain forward pass of the same batches, all included; None where it was not asked for.
    """

    passes: float
    readouts: int
    translators: int
    measured: float | None


@dataclass(frozen=True)
class Row:
    """One lens at one focal depth m. `states` l < L − m are those that it does not read as the model's own output.

    `inner` are means over these, `common` over the states that all rows can change, to compare rows; `answer_kl` is the latter
    over the tokens of answers alone. `prediction_depth` (in states), `resolution` (effective steps), `effort` Ω and
    `common_effort`: means over texts of means over the tokens of answers, which are all tokens where texts have no targets.
    """

    name: str
    lens: Mapping[str, Any]
    focal_depth: int
    states: int
    inner: Nearness
    common: Nearness
    answer_kl: Interval
    prediction_depth: Interval
    resolution: Interval
    effort: Interval
    common_effort: Interval
    separation: tuple[Separation, ...]
    cost: Cost


@dataclass(frozen=True)
class Evaluation:
    """Lenses side by side on identical inputs.

    `data` has `kl` with its interval `kl_low`, `kl_high`, `bias` and `next_token_loss`, float64 `[row, state]`, from the
    embeddings (0) to the model's own output (L), which a state from L − m on is. `manifest` says what was read of which model.
    """

    rows: tuple[Row, ...]
    data: xr.Dataset
    manifest: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """All of it as JSON: the manifest, and the rows, each with its values by state."""
        by_state = [
            {str(name): values.values[number].tolist() for name, values in self.data.data_vars.items()}
            for number in range(len(self.rows))
        ]
        rows = [asdict(row) | {"by_state": states} for row, states in zip(self.rows, by_state, strict=True)]
        return {**self.manifest, "rows": rows}

    def __repr__(self) -> str:
        inputs, model = self.manifest["inputs"], self.manifest["model"]
        return f"Evaluation({len(self.rows)} rows, {inputs['tokens']} tokens of {inputs['texts']} texts, {model['name']})"

    def _repr_html_(self) -> str:
        columns = [
            "lens",
            "m",
            "KL [95 %]",
            "bias",
            "next-token loss",
            "prediction depth",
            "Ω",
            "passes",
            "ln(1 + KL) by state",
        ]
        curves = np.log1p(self.data["kl"].values)
        highest = max(float(np.nanmax(curves)), 1e-9)
        rows = [_draw_row(row, curves[number] / highest) for number, row in enumerate(self.rows)]
        about = "KL, bias and loss in nats, means over the states that every row can change; passes by those of one plain pass."
        return frame(repr(self), draw_table("Lenses on identical inputs", columns, rows), about)


def _draw_row(row: Row, curve: np.ndarray) -> list[object]:
    near = row.common
    numbers = [say_number(value) for value in (near.bias, near.next_token_loss, row.prediction_depth.value)]
    last = [draw_effort(row.effort.value), say_number(row.cost.passes), draw_trajectory(curve.tolist(), row.states)]
    return [row.name, row.focal_depth, say_interval(near.kl), *numbers, *last]
