"""What every peer is given and measured with. It runs in the environments of the peers, so it must not import hyperlens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

Run = Callable[[], Tensor | None]
"""One reading: confidence `[state, token]`, the tokens of the first text first; nothing where none is read."""
NO_WAYS = {
    "cached": "no way to let one position enter deeper layers on the keys and values that are there",
    "jump sweep": "one depth at a time; the sum of the rows of the depths",
    "train": "it trains no lens",
}
"""What tools that open a model to interventions have no way for, by row, and why."""


@dataclass(frozen=True)
class Texts:
    """The same texts as token ids and as strings."""

    ids: list[list[int]]
    strings: list[str]

    @property
    def equal(self) -> bool:
        """Whether all have the same length."""
        return len({len(row) for row in self.ids}) == 1

    def tensor(self, device: str) -> Tensor:
        """The ids of texts of equal length."""
        return torch.tensor(self.ids, device=device)


@dataclass(frozen=True)
class Setting:
    """Which model is read, where, in which precision, and how many tokens are generated."""

    folder: Path
    device: str
    dtype: str
    tokens: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The precision as torch knows it."""
        return getattr(torch, self.dtype)

    def texts(self, name: str) -> Texts:
        """The texts of this name that lie beside the model."""
        return Texts(**json.loads((self.folder / "texts.json").read_text(encoding="utf-8"))[name])


Way = Callable[[Any, Texts, Setting], Run]
"""How a peer makes a reading ready: of its loaded model, the texts and the setting."""


def load_network(setting: Setting) -> Any:
    """The model as transformers loads it, for reading only."""
    network: Any = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=setting.torch_dtype)
    network = network.to(setting.device).eval()
    network.generation_config.eos_token_id = None
    return network.requires_grad_(False)


def confidence(logits: Tensor, chosen: Tensor) -> Tensor:
    """The probability of the chosen token of each place."""
    logits = logits.float()
    return (logits.gather(-1, chosen[..., None].to(logits.device))[..., 0] - logits.logsumexp(-1)).exp()


def generation_settings(setting: Setting) -> dict[str, Any]:
    """Greedy, of fixed length."""
    return {"max_new_tokens": setting.tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def on_ids(read: Callable[[Any, Tensor, Setting], Tensor]) -> Way:
    """The way that calls `read(model, ids, setting)` on texts of equal length."""

    def prepare(model: Any, texts: Texts, setting: Setting) -> Run:
        ids = texts.tensor(setting.device)
        return lambda: read(model, ids, setting)

    return prepare


def jump_ways(read: Callable[[Any, Tensor, int], Tensor]) -> dict[str, Way]:
    """The rows of single depths, each the way that calls `read(model, ids, depth)` on texts of equal length."""
    return {f"jump {depth}": on_ids(lambda model, ids, _, depth=depth: read(model, ids, depth)) for depth in (1, 2, 4, 8)}


def pad(ids: Sequence[Sequence[int]], side: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask `[text, token]` of texts padded on one side, and where the last token of each is."""
    longest = max(map(len, ids))
    rows, marks, places = [], [], []
    for row in ids:
        gap = [0] * (longest - len(row))
        rows.append([*row, *gap] if side == "right" else [*gap, *row])
        marks.append([1] * len(row) + gap if side == "right" else gap + [1] * len(row))
        places.append(len(row) - 1 if side == "right" else longest - 1)
    return tuple(torch.tensor(part, device=device) for part in (rows, marks, places))  # pyright: ignore[reportReturnType]


def last_places(texts: Texts, side: str, device: str) -> Tensor:
    """Where the last token of each text is in a batch padded on this side."""
    return pad(texts.ids, side, device)[2]


def at(states: Tensor, places: Tensor) -> Tensor:
    """What stands at one place of each text: `[text, width]` of `[text, token, width]`."""
    return states[torch.arange(len(places), device=states.device), places.to(states.device)]
