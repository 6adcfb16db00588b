"""Which prompts and settings of `generate` can be followed, and what ends a text."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Int
from torch import Tensor

from hyperlens.certificate import pad_texts
from hyperlens.configuration import context_length
from hyperlens.encoding import Encoded, encode_sample
from hyperlens.errors import InputError, first_sentence
from hyperlens.models import Model
from hyperlens.tracing.traces import Stops

MODES = ("greedy_search", "sample")
USUAL_NEW_TOKENS = 32
UNFOLLOWED = {"input_ids", "inputs", "inputs_embeds", "position_ids", "past_key_values", "custom_generate"}


@dataclass(frozen=True)
class Settings:
    """What `generate` is called with, and what it makes of it: `resolved` is the configuration with the model's own mixed in.

    `criteria` end texts beside the texts `stop` and the tokens `ends`.
    """

    passed: dict[str, Any]
    resolved: transformers.GenerationConfig
    criteria: transformers.StoppingCriteriaList
    stop: tuple[str, ...]
    ends: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many answers are made to each prompt."""
        return self.resolved.num_return_sequences or 1

    def limited(self, longest: int) -> dict[str, Any]:
        """What is passed on, with so many new tokens at most."""
        passed = {name: value for name, value in self.passed.items() if name not in ("max_new_tokens", "max_length")}
        if (given := passed.get("generation_config")) is None:
            return passed | {"max_new_tokens": longest}
        given = copy.deepcopy(given)
        given.max_new_tokens, given.max_length = longest, None
        return passed | {"generation_config": given}

    def describe(self) -> dict[str, Any]:
        """What decided how tokens were chosen, as a manifest keeps it."""
        kept = {name: value for name, value in self.resolved.to_diff_dict().items() if not name.startswith("_")}
        return {name: value for name, value in kept.items() if isinstance(value, str | int | float | bool | list)}


@dataclass(frozen=True)
class Batch:
    """Prompts as texts of their own, and as `generate` is given them: padded on the left, with a mask that is 0 on padding."""

    encoded: tuple[Encoded, ...]
    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]

    @property
    def width(self) -> int:
        """The columns of the prompts, padding with them."""
        return self.ids.shape[1]


def resolve_settings(model: Model, given: dict[str, Any]) -> Settings:
    """The settings, if each call of the model then gives one token of each text. Raises InputError."""
    if taken := UNFOLLOWED & given.keys():
        raise InputError(f"{min(taken)} is no setting that can be monitored; give the prompt as text or token ids")
    passed = {**given, "stop_strings": None} if "stop_strings" in given else dict(given)
    criteria = passed.pop("stopping_criteria", None) or []
    if not isinstance(criteria, list):
        raise InputError("stopping_criteria is no list; give a list of criteria")
    own = passed.get("generation_config")
    if own is not None and not isinstance(own, transformers.GenerationConfig):
        raise InputError(f"generation_config is {type(own).__name__}; give a GenerationConfig, or its settings by name")
    resolved = _resolve(model, passed)
    stop = _check_stops(model, given.get("stop_strings", resolved.stop_strings))
    if own is not None and own.stop_strings:
        passed["generation_config"] = own = copy.deepcopy(own)
        own.stop_strings = None
    if model.network.generation_config.stop_strings:  # mixed in wherever none are given
        passed.setdefault("tokenizer", model.tokenizer)
    _check_mode(resolved, passed)
    for name in ("max_new_tokens", "max_length", "num_return_sequences"):
        if (value := getattr(resolved, name)) is not None:
            check_whole(name, value, 1)
    return Settings(passed, resolved, transformers.StoppingCriteriaList(criteria), stop, _find_ends(resolved))


def _find_ends(resolved: transformers.GenerationConfig) -> tuple[int, ...]:
    """The tokens that end a text. Raises InputError."""
    ends: Any = resolved.eos_token_id
    listed = [] if ends is None else ends.flatten().tolist() if isinstance(ends, Tensor) else ends
    listed = listed if isinstance(listed, list | tuple) else [listed]
    if not all(_is_token(one) for one in listed):
        raise InputError(f"eos_token_id is {ends!r}; give the number of a token, or a list of them")
    return tuple(map(operator.index, listed))


def _resolve(model: Model, passed: dict[str, Any]) -> transformers.GenerationConfig:
    """The configuration as `generate` itself puts it together. Raises InputError."""
    others = {name: value for name, value in passed.items() if name not in ("generation_config", "max_length")}
    network: Any = model.network
    try:
        resolved = network._prepare_generation_config(passed.get("generation_config"), **others)[0]
    except Exception as error:  # whatever a configuration raises over a value that it cannot take
        raise InputError(f"generation refuses its settings ({first_sentence(error)}); change them") from None
    whole = (passed.get("max_length"), getattr(passed.get("generation_config"), "max_length", None))
    resolved.max_length = next((one for one in (*whole, network.generation_config.max_length) if one is not None), None)
    return resolved


def _check_mode(resolved: transformers.GenerationConfig, passed: dict[str, Any]) -> None:
    """Raises InputError for ways to generate in which a call gives more or less than one token of each text."""
    mode = getattr(resolved.get_generation_mode(passed.get("assistant_model")), "value", "")
    if mode not in MODES:
        raise InputError(
            f"a monitor follows greedy decoding and sampling, in which each call gives one token of each text, not {mode}; "
            "leave num_beams and assistants away"
        )
    if resolved.guidance_scale not in (None, 1, 1.0):
        raise InputError("guidance runs the model twice for each token; leave guidance_scale away")


def _check_stops(model: Model, stop: Any) -> tuple[str, ...]:
    """The texts that end an answer. Raises InputError."""
    listed = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) and one for one in listed):
        raise InputError("stop_strings are texts of at least one character; give a list of them")
    if any("\ud800" <= sign <= "\udfff" for one in listed for sign in one):
        raise InputError("a text to stop at holds half a character (a lone surrogate); give valid Unicode")
    if listed and model.tokenizer is None:
        raise InputError("stop_strings need a tokenizer, and this model came without one; stop at token ids")
    return tuple(listed)


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises InputError where a setting is no whole number, or too small."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; give a whole number from {least} up")


def encode_prompts(model: Model, prompt: Any, mask: Any, settings: Settings) -> Batch:
    """The prompts as a batch. Raises InputError."""
    device = model.splice.device
    if isinstance(prompt, Tensor) and prompt.ndim == 2:
        mask = _check_mask(prompt, mask, settings)
        rows: list[Any] = [ids[kept.bool()].tolist() for ids, kept in zip(prompt, mask, strict=True)]
        return Batch(_encode(model, rows), prompt.to(device), mask.to(device))
    if mask is not None:
        raise InputError("an attention_mask comes with a batch of token ids alone; give the prompt as a tensor [row, token]")
    several = isinstance(prompt, list | tuple) and bool(prompt) and not _is_token(prompt[0])
    encoded = _encode(model, list(prompt) if several else [prompt])
    if any(one.beside for one in encoded):
        raise InputError("a prompt comes with an image, and a monitor follows text alone; trace it with positions generated")
    if len({len(one.ids) for one in encoded}) > 1 and "left" not in model.certificate.paddings:
        raise InputError(f"{model.name} is not exact with padded prompts; give prompts of one length, or one at a time")
    inputs, _ = pad_texts([torch.tensor(one.ids, device=device) for one in encoded], "left", model.splice.filler)
    return Batch(encoded, inputs.ids, torch.ones_like(inputs.ids) if inputs.mask is None else inputs.mask)


def _encode(model: Model, given: list[Any]) -> tuple[Encoded, ...]:
    if not given:
        raise InputError("there is no prompt to go on from; give at least one")
    return tuple(encode_sample(one, model, "generated", f"text {number}") for number, one in enumerate(given, 1))


def _is_token(value: Any) -> bool:
    try:
        return operator.index(value) is not None
    except TypeError:
        return False


def _check_mask(prompt: Tensor, mask: Any, settings: Settings) -> Tensor:
    """The mask of a batch of token ids, 0 on padding, which is on the left. Raises InputError."""
    if mask is None:
        pad = settings.resolved.pad_token_id
        if pad is not None and pad not in settings.ends and (prompt == pad).any():
            raise InputError(f"the prompt holds token {pad}, which pads; give an attention_mask that says where it does")
        return torch.ones_like(prompt)
    if not isinstance(mask, Tensor) or mask.shape != prompt.shape:
        raise InputError("the attention_mask does not fit the prompt; give a tensor of the same shape, 0 on padding")
    kept = mask.bool().long()
    if not (kept[:, -1:] == 1).all() or (kept.diff(dim=-1) < 0).any():
        raise InputError("the attention_mask leaves tokens out behind the first one kept; pad prompts on the left alone")
    return kept


def check_rows(model: Model, settings: Settings, batch: Batch, depth: int) -> None:
    """Raises InputError where states cannot be routed beside several texts, or padded ones, of this model."""
    if not depth or model.certificate.cached_form == "rows":
        return
    if len(batch.mask) * settings.rows > 1:
        raise InputError(f"{model.name} keeps a memory of its own kind, one text at a time; give one prompt, or focal depth 0")
    if not batch.mask.all():
        raise InputError(f"{model.name} keeps a memory of its own kind, without padding; give the prompt without it")


def fit_length(model: Model, settings: Settings, batch: Batch) -> int:
    """How many tokens are made at most. Raises InputError where the context, or the length that was given, is full."""
    resolved, context, length = settings.resolved, context_length(model.splice.config), batch.width
    room = None if context is None else context - max(len(one.ids) for one in batch.encoded)
    wanted = resolved.max_new_tokens
    if wanted is None:
        wanted = USUAL_NEW_TOKENS if resolved.max_length is None else resolved.max_length - length
    if wanted < 1:
        raise InputError(f"the prompt has {length} tokens, and max_length is {resolved.max_length}; give a larger one")
    if room is not None and room < 1:
        raise InputError(f"the prompt has {length} tokens and fills the model's context of {context}; shorten it")
    return wanted if room is None else min(wanted, room)


def make_criteria(model: Model, settings: Settings, prompt: int) -> transformers.StoppingCriteriaList:
    """The criteria that end texts beside the end tokens, for prompts of so many columns."""
    stops = [Stops(model.tokenizer, prompt, settings.stop)] if settings.stop else []
    return transformers.StoppingCriteriaList([*settings.criteria, *stops])
