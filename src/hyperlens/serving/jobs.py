"""From the body of a request to what is to be done: its fields checked one by one, its texts as token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyperlens.encoding import encode_whole, write_chat
from hyperlens.errors import InputError
from hyperlens.monitoring.generation import Monitor
from hyperlens.serving.refusals import Refusal
from hyperlens.serving.service import MOST_CHOICES, MOST_TOP, MOST_TOP_TOKENS, Service, read_depth
from hyperlens.spelling import shorten, spell

USUAL_COMPLETION = 16
"""Tokens of a completion whose request names no number; OpenAI's own."""
ROLES = ("system", "developer", "user", "assistant")
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
"""Fields that change no answer here."""
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
}
"""Fields that would change an answer and are not done, and their values that ask for nothing."""
LOWEST_TEMPERATURE = 1e-3
"""Below it, logits that are divided by it leave their range."""
LONGEST_STOP = 1000
"""Characters of a text that ends an answer."""

NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")
"""How pydantic calls the mistake of giving something else where an object is expected."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Extension(_Strict):
    focal_depth: int | None = Field(None, ge=0)
    stride: int | None = Field(None, ge=1, lt=2**31)
    candidates: int | None = Field(None, ge=2, lt=2**31)
    top_k: int | None = Field(None, ge=0, le=MOST_TOP)


class _Asked(_Strict):
    """The fields that both endpoints share."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    hyperlens: _Extension | None = None


class _Completion(_Asked):
    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=0)


class _Chat(_Asked):
    messages: Any
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0. `seed` None takes one that nobody knows; `stop` are texts that end an
    answer and are not part of it."""

    largest: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """As the model's own generate has it."""
        if not self.temperature:
            return {"max_new_tokens": self.largest, "do_sample": False}
        chosen = {"temperature": float(self.temperature), "top_p": float(self.top_p), "top_k": self.top_k}
        return {"max_new_tokens": self.largest, "do_sample": True, **chosen}


@dataclass(frozen=True)
class Job:
    """What a request asks for: `copies` answers to each of its prompts, read by `monitor`, which reads as is `usual` or not."""

    chat: bool
    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    copies: int
    sampling: Sampling
    monitor: Monitor
    usual: bool
    stream: bool
    include_usage: bool
    logprobs: bool

    @property
    def prompt_tokens(self) -> int:
        """Those of all its prompts."""
        return sum(map(len, self.prompts))

    @property
    def focal_depth(self) -> int:
        """That at which its answers are read."""
        return read_depth(self.monitor)


def read_job(body: bytes, chat: bool, service: Service) -> Job:
    """The job that a body describes. Raises Refusal, which names the field that is wrong."""
    asked = _read_fields(_parse(body), chat)
    if asked.model != service.name:
        sentence = f'there is no model "{_write_line(asked.model[:200])}" here; this server has "{service.name}"'
        raise Refusal(404, sentence, "model", "model_not_found")
    texts = _read_messages(asked.messages, service) if isinstance(asked, _Chat) else _read_prompts(asked.prompt)
    copies, param = asked.n or 1, "messages" if chat else "prompt"
    if len(texts) * copies > MOST_CHOICES:
        raise _wrong("n", f"the request asks for {len(texts) * copies} answers; ask for at most {MOST_CHOICES} at once")
    prompts = tuple(_encode(text, chat, service, param) for text in texts)
    logprobs = asked.logprobs is not None and asked.logprobs is not False
    monitor = _open_monitor(asked.hyperlens or _Extension.model_validate({}), logprobs, service)
    length = _choose_length(asked, max(map(len, prompts)), service, param)
    _check_top(monitor, len(prompts) * copies * length)
    return Job(
        chat,
        tuple(text if isinstance(text, str) else str(service.tokenizer.decode(text)) for text in texts),
        prompts,
        copies,
        _read_sampling(asked, length),
        monitor,
        service.is_usual(monitor),
        bool(asked.stream),
        bool(asked.stream_options and asked.stream_options.include_usage),
        logprobs,
    )


def _parse(body: bytes) -> dict[str, Any]:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    try:
        text = body.decode(json.detect_encoding(body))
        document = json.loads(text, parse_constant=refuse_constant)
        if "\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _wrong(None, "the request holds half a character (a lone surrogate); send valid Unicode") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _wrong(None, f"the request is not JSON ({reason}); send one object") from None
    if not isinstance(document, dict):
        raise _wrong(None, "the request is JSON but no object; send the fields between braces")
    return document


def _read_fields(document: dict[str, Any], chat: bool) -> _Chat | _Completion:
    """The fields by their kinds and ranges; what this server does not do is refused, not left out."""
    for name in document.keys() & UNSUPPORTED.keys():
        value = document[name]
        if value is not None and not any(type(value) is type(one) and value == one for one in _spell(UNSUPPORTED[name])):
            advice = "; hyperlens.top_k gives the top tokens of every state" if name == "top_logprobs" else ""
            raise _wrong(name, f"{name} is not supported by this server; leave it away{advice}", "unsupported_parameter")
    left = {name: value for name, value in document.items() if name not in UNSUPPORTED and name not in WITHOUT_EFFECT}
    try:
        return (_Chat if chat else _Completion).model_validate(left)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = _write_line("".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])[1:101])
        raise _wrong(place, _explain(place, problem)) from None


def _write_line(text: str) -> str:
    """What a client wrote, as a part of a sentence of ours."""
    return " ".join(spell(text).split())


def _spell(values: Sequence[Any]) -> list[Any]:
    """Values, and whole numbers as JSON may also have them."""
    return [*values, *(float(value) for value in values if type(value) is int)]


def _explain(place: str, problem: Mapping[str, Any]) -> str:
    if problem["type"] == "missing":
        return f"the field {place} is missing; give it"
    if problem["type"] == "extra_forbidden":
        return f"this server knows no field {place}; leave it away"
    given = shorten(json.dumps(problem["input"], default=str), 60)
    if problem["type"] in NO_OBJECT:
        return f"{place} is {given}; give an object, its fields between braces"
    return f"{place} is {given}; {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _read_prompts(prompt: Any) -> list[str | list[int]]:
    """One text, one list of token ids, or several of them."""
    if isinstance(prompt, str) or _are_ids(prompt):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(one, str) or _are_ids(one) for one in prompt):
        return prompt
    raise _wrong("prompt", "prompt is neither a text, nor a list of token ids, nor a list of either; give one of them")


def _are_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(one) is int and 0 <= one < 2**31 for one in given)


def _read_messages(messages: Any, service: Service) -> list[str | list[int]]:
    """The chat as one text, in the model's own template."""
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "messages is no list of messages; give at least one, with role and content")
    if not service.tokenizer.chat_template:
        raise _wrong("messages", f"{service.name} has no chat template; send its text as prompt to /v1/completions")
    turns = [_read_turn(message, f"messages[{number}]") for number, message in enumerate(messages)]
    try:
        return [write_chat(service.model, turns, "these messages")]
    except InputError as error:
        raise _wrong("messages", str(error)) from None


def _read_turn(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _wrong(place, f"{place} is no object; give one with role and content")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise _wrong(f"{place}.{name}", f"{place} has {name}, which this server does not support; leave it away")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise _wrong(f"{place}.role", f"the role of {place} is none of {', '.join(ROLES)}; give one of them")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = [part.get("text") for part in content]
    parts: list[Any] = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str) for part in parts):
        raise _wrong(f"{place}.content", f"the content of {place} is not text; give a text, or a list of parts of type text")
    return {"role": role, "content": "".join(parts)}


def _encode(text: str | list[int], chat: bool, service: Service, param: str) -> tuple[int, ...]:
    model, context = service.model, service.context
    if isinstance(text, str) and context is not None and len(text) > context * service.longest_token:
        sentence = f"the prompt has {len(text)} characters, and this model's context holds {context} tokens; shorten it"
        raise Refusal(400, sentence, param, "context_length_exceeded")
    if chat:
        text = list(service.tokenizer(text, add_special_tokens=False)["input_ids"])  # the template wrote what opens a text
    try:
        return encode_whole(text, model, "last", "the prompt").ids
    except InputError as error:
        raise _wrong(param, str(error)) from None


def _choose_length(asked: _Chat | _Completion, prompt: int, service: Service, param: str) -> int:
    """The most tokens of each answer: as many as asked for, else as many as there is room for."""
    context = service.context
    if context is not None and prompt >= context:
        sentence = f"the prompt has {prompt} tokens, and this model's context holds {context} with the answer; shorten it"
        raise Refusal(400, sentence, param, "context_length_exceeded")
    name = "max_completion_tokens" if isinstance(asked, _Chat) and asked.max_completion_tokens else "max_tokens"
    given = getattr(asked, name)
    usual = service.largest_answer if isinstance(asked, _Chat) else min(USUAL_COMPLETION, service.largest_answer)
    room = usual if context is None else min(usual, context - prompt)
    if given is None:
        return room
    if given > service.largest_answer:
        raise _wrong(name, f"{name} is {given}; this server writes at most {service.largest_answer} tokens")
    if context is not None and prompt + given > context:
        sentence = f"the prompt has {prompt} tokens and {name} is {given}; this model's context holds {context} together"
        raise Refusal(400, sentence, name, "context_length_exceeded")
    return given


def _read_sampling(asked: _Asked, largest: int) -> Sampling:
    if asked.temperature and asked.temperature < LOWEST_TEMPERATURE:
        sentence = (
            f"temperature is {asked.temperature:g}; give 0 for the most probable token, or from {LOWEST_TEMPERATURE} to 2"
        )
        raise _wrong("temperature", sentence)
    usual = {name: getattr(asked, name) for name in ("temperature", "top_p", "top_k", "seed")}
    return Sampling(
        largest, stop=_read_stops(asked.stop), **{name: value for name, value in usual.items() if value is not None}
    )


def _read_stops(given: Any) -> tuple[str, ...]:
    """The texts that end an answer."""
    stop = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(one, str) and one for one in stop):
        raise _wrong("stop", "stop is neither a text nor a list of up to four texts; give one of them, and none empty")
    if (longest := max(map(len, stop), default=0)) > LONGEST_STOP:
        raise _wrong("stop", f"a text of stop has {longest} characters; give at most {LONGEST_STOP}")
    return tuple(stop)


def _open_monitor(asked: _Extension, logprobs: bool, service: Service) -> Monitor:
    """What reads the answers; `"candidates": null` asks for the whole vocabulary, also where the server's own is another."""
    given = asked.model_dump(include=asked.model_fields_set)
    choices = {name: value for name, value in given.items() if value is not None or name == "candidates"}
    try:
        monitor = service.make_monitor(**choices)
    except InputError as error:
        raise _wrong("hyperlens", str(error)) from None
    if logprobs and monitor.candidates is not None:
        raise _wrong("logprobs", 'logprobs need the whole vocabulary; send "hyperlens": {"candidates": null} with them')
    return monitor


def _check_top(monitor: Monitor, tokens: int) -> None:
    """That an answer of so many tokens does not have too many top tokens beside it."""
    states = 2 + (monitor.model.layers - read_depth(monitor) - 1) // monitor.stride
    if (asked := tokens * states * monitor.top_k) > MOST_TOP_TOKENS:
        raise _wrong(
            "hyperlens.top_k",
            f"{monitor.top_k} top tokens of {states} states of up to {tokens} tokens are {asked}; ask for at most "
            f"{MOST_TOP_TOKENS}, with a smaller top_k, max_tokens or n, or a larger stride",
        )


def _wrong(param: str | None, sentence: str, code: str | None = None) -> Refusal:
    return Refusal(400, sentence, param, code)
