"""A plain loop over transformers' hidden states, as most people write it: norm and head of each state, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from shared import Run, Setting, Texts, at, confidence, generation_settings, last_places, load_network, pad
from torch import Tensor

PACKAGES: tuple[str, ...] = ()
NOT_ITS_AIM = "a loop over hidden states runs no layer; see the naive loop"
NO_DEFAULT = "whoever writes the loop pads"
CANNOT = {row: NOT_ITS_AIM for row in ("jump", "cached")} | {"train": "it has nothing to train"}


def load(setting: Setting) -> Any:
    """The model itself."""
    return load_network(setting)


def forward(network: Any, texts: Texts, setting: Setting) -> Run:
    """The unit: one call of the model on all texts, as one would call it for its last logits."""
    ids, mask, _ = pad(texts.ids, "right", setting.device)
    beside = {} if texts.equal else {"attention_mask": mask}

    def run() -> None:
        network(ids, logits_to_keep=1, use_cache=False, **beside)

    return run


def generate(network: Any, texts: Texts, setting: Setting) -> Run:
    """The unit of generation: nobody reads."""
    ids, mask, _ = pad(texts.ids, "left", setting.device)

    def run() -> None:
        network.generate(ids, attention_mask=mask, **generation_settings(setting))

    return run


def project(network: Any, states: Tensor, number: int) -> Tensor:
    """Logits of a state; the last that transformers gives is normed already."""
    last = number == network.config.num_hidden_layers
    return network.lm_head(states if last else network.model.norm(states))


Project = Callable[[Any, Tensor, int], Tensor]


def run_padded(network: Any, texts: Texts, side: str, setting: Setting) -> tuple[Tensor, ...]:
    """All states of a padded batch, with its mask, and places counted from the first token of each text."""
    ids, mask, _ = pad(texts.ids, side, setting.device)
    beside = {} if texts.equal else {"attention_mask": mask}
    if not texts.equal and side == "left":
        beside["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return network.model(ids, use_cache=False, output_hidden_states=True, **beside).hidden_states


def read_places(network: Any, texts: Texts, side: str, setting: Setting, project: Project, chosen: Tensor | None) -> Tensor:
    """The last token of each text of a padded batch, at every state."""
    states, places = run_padded(network, texts, side, setting), last_places(texts, side, setting.device)
    logits = [project(network, at(layer, places), number) for number, layer in enumerate(states)]
    picked = logits[-1].argmax(-1) if chosen is None else chosen
    return torch.stack([confidence(one, picked) for one in logits])


def last(project: Project) -> Callable[[Any, Texts, Setting], Run]:
    """The logit lens on the last token."""

    def prepare(network: Any, texts: Texts, setting: Setting) -> Run:
        return lambda: read_places(network, texts, "right", setting, project, None)

    return prepare


def every(project: Project) -> Callable[[Any, Texts, Setting], Run]:
    """The logit lens on all tokens: one state's logits at a time, so that nothing larger is kept."""

    def prepare(network: Any, texts: Texts, setting: Setting) -> Run:
        ids = texts.tensor(setting.device)

        def run() -> Tensor:
            found = network(ids, use_cache=False, output_hidden_states=True)
            chosen = found.logits.argmax(-1)
            states = found.hidden_states
            del found
            return torch.stack([confidence(project(network, one, n), chosen).flatten() for n, one in enumerate(states)])

        return run

    return prepare


def spoken(project: Project) -> Callable[[Any, Texts, Setting], Run]:
    """Generation that keeps its hidden states, each step of which is read behind it."""

    def prepare(network: Any, texts: Texts, setting: Setting) -> Run:
        ids, mask, _ = pad(texts.ids, "left", setting.device)
        kept = {"return_dict_in_generate": True, "output_hidden_states": True}

        def run() -> Tensor:
            made = network.generate(ids, attention_mask=mask, **kept, **generation_settings(setting))
            said = made.sequences[:, ids.shape[1] :]
            rows = []
            for step, states in enumerate(made.hidden_states):
                logits = [project(network, layer[:, -1], number) for number, layer in enumerate(states)]
                rows.append(torch.stack([confidence(one, said[:, step]) for one in logits]))
            return torch.stack(rows, 2).flatten(1)

        return run

    return prepare


def read_last(network: Any, texts: Texts, side: str, chosen: Tensor, setting: Setting) -> Tensor:
    """The last read-out."""
    return read_places(network, texts, side, setting, project, chosen)[-1]


WAYS = {
    "forward": forward,
    "speak": generate,
    "last": last(project),
    "ragged": last(project),
    "all": every(project),
    "generate": spoken(project),
}
