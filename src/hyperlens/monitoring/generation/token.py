"""One token as it was generated, with its confidence trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

TopTokens = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LiveToken:
    """A generated token: where it stands, what it says, and how the model came to it.

    `row` is the text of the batch, `index` counts its new tokens from 0, `position` is that of the token before, which predicts
    it. `text` is what it adds to the answer: empty for the first bytes of a character and for the token that ends an answer.
    `states` are the numbers of the states that were read, ascending, the last L − m; `confidence` has the probability of the
    token at each, float32 in [0, 1], the last the model's own. `effort` Ω in [0, 1], NaN where undefined; `onset` and `commit`
    are states; `volatility` ≥ 0. `output_id` is the model's own top token, `output_probability` its probability in the whole
    vocabulary. `top` has for each state its top tokens and their probabilities, where they were asked for.
    """

    row: int
    index: int
    position: int
    token_id: int
    text: str
    states: tuple[int, ...]
    confidence: np.ndarray
    effort: float
    onset: int | None
    commit: int | None
    volatility: float
    output_id: int
    output_probability: float
    top: tuple[TopTokens, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The token as JSON has it; null for what is undefined."""
        return {
            "row": self.row,
            "index": self.index,
            "position": self.position,
            "token_id": self.token_id,
            "text": self.text,
            "states": list(self.states),
            "confidence": [round(float(value), 6) for value in self.confidence],
            "effort": None if math.isnan(self.effort) else round(self.effort, 6),
            "onset": self.onset,
            "commit": self.commit,
            "volatility": round(self.volatility, 6),
            "output_probability": round(self.output_probability, 6),
            "top": [[[text, round(share, 6)] for text, share in state] for state in self.top],
        }
