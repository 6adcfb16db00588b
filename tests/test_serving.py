"""The server: OpenAI's own client gets exactly the model's tokens with what was read of them, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from commands import Call, make_call
from families import build_family, build_tokenizer, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import save
from sentences import is_one_sentence
from serving import Tally, ask_all, make_questions, read_gauges, settle

from hyperlens.errors import InputError
from hyperlens.lenses import HyperLens
from hyperlens.models import load_model
from hyperlens.monitoring.generation import Monitor
from hyperlens.serving import Service, describe_refusal, jobs, make_app, open_tracer, spans, visits
from hyperlens.serving.desk import Desk, Ticket
from hyperlens.serving.jobs import Job
from hyperlens.serving.refusals import Refusal
from hyperlens.serving.writing import StopFinder
from hyperlens.web import guard, open_socket

TOKEN, NAME = "a-token-for-tests", "tests/small"
TEMPLATE = "{{ '<s>' }}{% for m in messages %}{{ ' ' + m.content }}{% endfor %}"
PROMPT = "w20 w30 w40"
LAYERS, COUNT = 8, 5
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Any:
    """A small random model that can be chatted with."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    loaded = load_model(build_family("llama", num_hidden_layers=LAYERS), tokenizer)
    return dataclasses.replace(loaded, name=NAME)


@contextlib.contextmanager
def run(service: Service, tracer: Any = None) -> Iterator[SimpleNamespace]:
    """A server in this process: its `house`, its address, and the official client."""
    app, opened = make_app(service, tracer), open_socket("127.0.0.1", 0)
    guarded = guard(app, TOKEN, ("127.0.0.1",), 2**16, ("/v1", "/metrics"), describe_refusal)
    server = uvicorn.Server(uvicorn.Config(guarded, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, name="test-server")
    thread.start()
    url = f"http://127.0.0.1:{opened.getsockname()[1]}"
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0, timeout=30) as client:
            yield SimpleNamespace(house=app.state.house, url=url, client=client, service=service)
    finally:
        server.should_exit = True
        thread.join()
        opened.close()


@pytest.fixture(scope="module")
def served(model: Any) -> Iterator[SimpleNamespace]:
    with run(Service(model, HyperLens((2,), "cached"), largest_answer=48)) as found:
        yield found


@pytest.fixture
def call(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Call:
    return make_call(capsys, monkeypatch, "serve")


def continue_greedily(model: Any, prompt: str, count: int) -> list[int]:
    """The new tokens of the model's own generate."""
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    made = model.network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return made[0, ids.shape[1] :].tolist()


def ids_of(choice: Any) -> list[int]:
    return [token["token_id"] for token in choice.hyperlens["tokens"]]


def complete(served: Any, prompt: Any = PROMPT, **more: Any) -> Any:
    return served.client.completions.create(**{"model": NAME, "prompt": prompt, "max_tokens": COUNT, "temperature": 0} | more)


def post(served: Any, body: Any, path: str = "completions", token: str = TOKEN, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{served.url}/v1/{path}", content=content, headers={"Authorization": f"Bearer {token}"} | headers)


@contextlib.contextmanager
def stand_still(served: Any, monkeypatch: pytest.MonkeyPatch, after: int = 1) -> Iterator[tuple[threading.Event, list[Any]]]:
    """Lets generation stop at its token number `after` until the event is set; with all tokens that were made meanwhile."""
    go, made, metrics = threading.Event(), [], served.house.metrics
    usual = metrics.note_token

    def note(token: Any, *more: Any) -> None:
        made.append(token)
        usual(token, *more)
        if len(made) == after:
            go.wait(20)

    monkeypatch.setattr(metrics, "note_token", note)
    try:
        yield go, made
    finally:
        go.set()
        monkeypatch.undo()


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    until = time.perf_counter() + seconds
    while not true():
        assert time.perf_counter() < until, "it did not come to pass"
        time.sleep(0.01)


def in_background(action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(action())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


def test_a_whole_answer_is_the_models_own_with_what_a_monitor_reads(served: Any, model: Any) -> None:
    answer = complete(served)
    choice, wanted = answer.choices[0], continue_greedily(model, PROMPT, COUNT)
    read = Monitor(model, HyperLens((2,), "cached"), together=1).generate(PROMPT, max_new_tokens=COUNT, do_sample=False)
    assert ids_of(choice) == wanted == [token.token_id for token in read.tokens]
    assert choice.hyperlens["tokens"] == json.loads(json.dumps([token.describe() for token in read.tokens]))
    assert choice.text == read.texts[0] and (choice.finish_reason, answer.object) == ("length", "text_completion")
    prompt = len(model.tokenizer(PROMPT)["input_ids"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        prompt,
        COUNT,
        prompt + COUNT,
    )
    said = answer.model_extra["hyperlens"]
    assert (said["focal_depth"], said["layers"], said["model_fingerprint"]) == (2, LAYERS, model.fingerprint)
    efforts = [token.effort for token in read.tokens if not math.isnan(token.effort)]
    early = [token.commit <= (LAYERS - 2) / 2 for token in read.tokens if not math.isnan(token.effort)]
    means = [
        sum(efforts) / len(efforts),
        sum(float(token.confidence[-1]) for token in read.tokens) / COUNT,
        sum(early) / len(early),
    ]
    assert list(said["summary"].values()) == pytest.approx([COUNT, *means])


def test_a_streamed_answer_says_the_same_piece_by_piece(served: Any) -> None:
    whole = complete(served)
    chunks = list(complete(served, stream=True, stream_options={"include_usage": True}))
    spoken = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.text for choice in spoken) == whole.choices[0].text
    assert [token for choice in spoken for token in choice.hyperlens["tokens"]] == whole.choices[0].hyperlens["tokens"]
    assert [choice.finish_reason for choice in spoken] == [None] * COUNT + ["length"]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert chunks[-2].model_extra["hyperlens"] == whole.model_extra["hyperlens"]
    assert len({chunk.id for chunk in chunks}) == 1
    raw = post(served, {"model": NAME, "prompt": PROMPT, "stream": True, "max_tokens": 2})
    assert raw.headers["content-type"].startswith("text/event-stream") and raw.text.endswith("data: [DONE]\n\n")


def test_a_chat_is_put_through_the_models_template(served: Any, model: Any) -> None:
    parts: Any = [{"type": "text", "text": "w20 "}, {"type": "text", "text": "w30"}]
    messages: Any = [{"role": "system", "content": "w11"}, {"role": "user", "content": parts}]
    asked: Any = {"model": NAME, "messages": messages, "max_completion_tokens": 6, "temperature": 0}
    answer = served.client.chat.completions.create(**asked)
    choice = answer.choices[0]
    assert ids_of(choice) == continue_greedily(model, "<s> w11 w20 w30", 6)
    assert choice.message.role == "assistant" and answer.usage.prompt_tokens == 4
    chunks = list(served.client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "length"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert [token for chunk in chunks[1:] for token in ids_of(chunk.choices[0])] == ids_of(choice)


def test_a_request_chooses_how_it_is_read(served: Any, model: Any) -> None:
    extension = {"focal_depth": 0, "stride": 2, "top_k": 3}
    answer = complete(served, extra_body={"hyperlens": extension})
    token = answer.choices[0].hyperlens["tokens"][0]
    assert token["states"] == [0, 2, 4, 6, 8] and len(token["confidence"]) == len(token["top"]) == 5
    assert answer.model_extra["hyperlens"]["focal_depth"] == 0
    few = complete(served, extra_body={"hyperlens": {"candidates": 2}}).choices[0]
    assert ids_of(few) == ids_of(answer.choices[0])
    assert all(token["confidence"][-1] >= 0.5 for token in few.hyperlens["tokens"])


def test_several_prompts_and_copies_are_several_choices(served: Any, model: Any) -> None:
    prompts = ["w20 w30", "w50"]
    answer = complete(served, prompts, n=2)
    wanted = [continue_greedily(model, prompt, COUNT) for prompt in prompts for _ in range(2)]
    assert [ids_of(choice) for choice in answer.choices] == wanted
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    ids = model.tokenizer("w50")["input_ids"]
    assert ids_of(complete(served, ids).choices[0]) == wanted[2]
    last = list(complete(served, prompts, stream=True))[-1]
    assert last.model_extra["hyperlens"]["summary"]["tokens"] == 2 * COUNT


def test_a_seed_gives_the_same_tokens_whatever_others_draw_meanwhile(served: Any, model: Any) -> None:
    wanted = make_questions(model, 1, 6)[0]
    state = torch.random.get_rng_state()

    def draw(seed: int | None) -> list[int]:
        chosen = {"seed": seed} if seed is not None else {}
        return ids_of(complete(served, wanted.prompt, temperature=1, max_tokens=6, **chosen).choices[0])

    others = [in_background(lambda: draw(None)) for _ in range(2)]
    assert draw(0) == wanted.sampled == draw(0) != draw(1)
    for thread, _ in others:
        thread.join()
    assert len({tuple(found[0]) for _, found in others}) == 2, "without a seed nobody draws what another drew"
    both = complete(served, wanted.prompt, temperature=1, max_tokens=6, seed=0, n=2)
    assert [ids_of(choice) for choice in both.choices] == [draw(0), draw(1)]
    assert torch.equal(state, torch.random.get_rng_state())


def test_sampling_settings_reach_the_model(served: Any) -> None:
    greedy = ids_of(complete(served).choices[0])
    for narrow in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"temperature": 1e-3}):
        assert ids_of(complete(served, **{"temperature": 1.5, **narrow}).choices[0]) == greedy


@settings(max_examples=40)
@given(st.lists(st.text("ab", max_size=4), max_size=6), st.lists(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_whatever_pieces_a_text_comes_in_it_is_shown_up_to_its_first_stop(pieces: list[str], stops: list[str]) -> None:
    finder, whole, shown, seen = StopFinder(tuple(stops)), "".join(pieces), "", ""
    for piece in pieces:
        if not finder.found:
            shown, seen = shown + finder.feed(piece), seen + piece
    places = [place for place in map(seen.find, stops) if place >= 0]
    assert finder.found == any(stop in whole for stop in stops)
    assert shown + finder.held == (seen[: min(places)] if places else whole)


def test_a_long_stop_text_costs_no_more_than_what_was_said() -> None:
    finder = StopFinder(("a" * 10**7 + "b",))
    began = time.perf_counter()
    assert finder.feed("ba") == "b" and finder.feed("a" * 20) == "" and finder.feed("c") == "a" * 21 + "c"
    assert time.perf_counter() - began < 1


def test_an_answer_ends_before_a_stop_text_and_at_the_models_own_end(
    served: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = complete(served).choices[0]
    word = whole.text.split()[2]
    cut = complete(served, stop=[word, "never"]).choices[0]
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(word)], "stop")
    streamed = list(complete(served, stop=word, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.text
    assert ids_of(cut) == ids_of(whole)[: len(ids_of(cut))]
    assert complete(served, stop="never").choices[0].text == whole.text
    end = ids_of(whole)[3]
    monkeypatch.setattr(model.network.generation_config, "eos_token_id", end)
    ended = complete(served).choices[0]
    assert ids_of(ended)[-1] == end and ended.finish_reason == "stop"


def test_log_probabilities_are_those_of_the_chosen_tokens(served: Any) -> None:
    choice = complete(served, logprobs=0).choices[0]
    confidence = [token["confidence"][-1] for token in choice.hyperlens["tokens"]]
    assert [math.exp(value) for value in choice.logprobs.token_logprobs] == pytest.approx(confidence, abs=1e-5)
    messages: Any = [{"role": "user", "content": PROMPT}]
    chat = served.client.chat.completions.create(model=NAME, messages=messages, logprobs=True, max_tokens=2, temperature=0)
    content = chat.choices[0].logprobs.content
    assert "".join(one.token for one in content) == chat.choices[0].message.content


CHAT: Any = {"messages": [{"role": "user", "content": "w20"}]}
WRONG: list[tuple[str, Any, int, str | None, str]] = [
    ("completions", b'{"model": "tests/small", "prompt', 400, None, "not JSON"),
    ("completions", b"[" * 9000, 400, None, "not JSON"),
    ("completions", b"\xff\xfe", 400, None, "not JSON"),
    ("completions", b"[1]", 400, None, "no object"),
    ("completions", b'{"model": "tests/small", "prompt": "w20", "temperature": NaN}', 400, None, "NaN"),
    ("completions", {"prompt": PROMPT, "model": "other"}, 404, "model", '"tests/small"'),
    ("completions", {"prompt": PROMPT, "model": 3}, 400, "model", "string"),
    ("completions", {}, 400, "prompt", "missing"),
    ("completions", {"prompt": ""}, 400, "prompt", "empty"),
    ("completions", {"prompt": []}, 400, "prompt", "neither"),
    ("completions", {"prompt": ["w20", 3]}, 400, "prompt", "neither"),
    ("completions", {"prompt": [5, 10**6]}, 400, "prompt", "outside"),
    ("completions", {"prompt": [5, 10**30]}, 400, "prompt", "neither"),
    ("completions", {"prompt": "\ud800"}, 400, None, "surrogate"),
    ("completions", {"prompt": PROMPT, "model": "\ud800"}, 400, None, "surrogate"),
    ("completions", {"prompt": PROMPT, "\udfff": 1}, 400, None, "surrogate"),
    ("completions", {"prompt": PROMPT, "hyperlens": {"\udfff": 1}}, 400, None, "surrogate"),
    ("completions", json.dumps({"prompt": "\ud800"}).encode("utf-16"), 400, None, "surrogate"),
    ("completions", b'{"prompt": "\xed\xa0\x80"}', 400, None, "not JSON"),
    ("completions", {"prompt": PROMPT, "a\nb\u202e" + "c" * 300: 1}, 400, "a b\\u202e" + "c" * 96, "knows no field"),
    ("completions", {"prompt": "w20" * 10**4}, 400, "prompt", r"30000 characters.* 64 tokens"),
    ("completions", {"prompt": "w20 " * 70}, 400, "prompt", r"70 tokens.* 64"),
    ("completions", {"prompt": "w20 " * 40, "max_tokens": 30}, 400, "max_tokens", r"40 tokens.* 30.* 64"),
    ("completions", {"prompt": PROMPT, "max_tokens": 49}, 400, "max_tokens", r"49.* 48"),
    ("completions", {"prompt": PROMPT, "max_tokens": 0}, 400, "max_tokens", "greater"),
    ("completions", {"prompt": PROMPT, "max_tokens": 2.5}, 400, "max_tokens", "integer"),
    ("completions", {"prompt": PROMPT, "temperature": 3}, 400, "temperature", "less"),
    ("completions", {"prompt": PROMPT, "temperature": True}, 400, "temperature", "number"),
    ("completions", {"prompt": PROMPT, "temperature": 1e-37}, 400, "temperature", r"1e-37; give 0 .* 0\.001"),
    ("completions", {"prompt": PROMPT, "top_p": 0}, 400, "top_p", "greater"),
    ("completions", {"prompt": PROMPT, "n": 17}, 400, "n", "less"),
    ("completions", {"prompt": [PROMPT] * 9, "n": 2}, 400, "n", "18 answers"),
    ("completions", {"prompt": PROMPT, "seed": 2**70}, 400, "seed", "less"),
    ("completions", {"prompt": PROMPT, "stop": ["a"] * 5}, 400, "stop", "four"),
    ("completions", {"prompt": PROMPT, "stop": [""]}, 400, "stop", "empty"),
    *[("completions", {"prompt": PROMPT, "stop": none}, 400, "stop", "neither a text") for none in ({}, False, 0, "")],
    ("completions", {"prompt": PROMPT, "stop": "a" * 1001}, 400, "stop", "1001 characters"),
    ("completions", {"prompt": PROMPT, "reasoning_effort": "low"}, 400, "reasoning_effort", "no field"),
    ("completions", {"prompt": PROMPT, "presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
    ("completions", {"prompt": PROMPT, "logit_bias": {"5": 3}}, 400, "logit_bias", "not supported"),
    ("completions", {"prompt": PROMPT, "echo": True}, 400, "echo", "not supported"),
    ("completions", {"prompt": PROMPT, "logprobs": 2}, 400, "logprobs", "less"),
    ("completions", {"prompt": PROMPT, "temprature": 0}, 400, "temprature", "no field"),
    ("completions", {"prompt": PROMPT, "hyperlens": {"focal_depth": 8}}, 400, "hyperlens", "give 0 to 7$"),
    ("completions", {"prompt": PROMPT, "hyperlens": {"focal_depth": 10**40}}, 400, "hyperlens", "give 0 to 7$"),
    ("completions", {"prompt": PROMPT, "hyperlens": []}, 400, "hyperlens", r"^hyperlens is \[\]; give an object"),
    ("completions", {"prompt": PROMPT, "hyperlens": {"stride": 10**40}}, 400, "hyperlens.stride", "less"),
    (
        "completions",
        {"prompt": PROMPT, "hyperlens": {"top_k": 20}, "n": 16, "max_tokens": 48},
        400,
        "hyperlens.top_k",
        r"20 top tokens of 7 states of up to 768 tokens are 107520; ask for at most 100000",
    ),
    ("completions", {"prompt": PROMPT, "hyperlens": {"stride": 0}}, 400, "hyperlens.stride", "greater"),
    ("completions", {"prompt": PROMPT, "hyperlens": {"candidates": 4, "top_k": 2}}, 400, "hyperlens", "top tokens"),
    ("completions", {"prompt": PROMPT, "hyperlens": {"depth": 2}}, 400, "hyperlens.depth", "no field"),
    ("completions", {"prompt": PROMPT, "logprobs": 0, "hyperlens": {"candidates": 4}}, 400, "logprobs", "vocabulary"),
    ("chat/completions", {"messages": []}, 400, "messages", "at least one"),
    ("chat/completions", {"messages": [3]}, 400, "messages[0]", "no object"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0].content", "not text"),
    ("chat/completions", {"messages": [{"role": "pirate", "content": "w20"}]}, 400, "messages[0].role", "none of"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0].content",
        "text",
    ),
    ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
]


@pytest.mark.parametrize(("path", "body", "status", "param", "words"), WRONG)
def test_what_cannot_be_done_is_refused_in_a_sentence_with_its_field(
    served: Any, path: str, body: Any, status: int, param: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST_TOP_TOKENS", 100_000)
    answer = post(served, body if isinstance(body, bytes) else {"model": NAME} | body, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert re.search(words, error["message"]) and is_one_sentence(error["message"]), error["message"]


def test_fields_that_ask_for_nothing_are_taken(served: Any) -> None:
    nothing = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "echo": False, "suffix": None}
    assert ids_of(complete(served, user="me", **nothing).choices[0]) == ids_of(complete(served).choices[0])


def test_the_official_client_knows_the_errors(served: Any) -> None:
    stranger = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="token"):
        stranger.models.list()
    with pytest.raises(openai.NotFoundError) as caught:
        complete(served, model="other")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as refused:
        complete(served, "w20 " * 70)
    assert refused.value.code == "context_length_exceeded"
    assert [one.id for one in served.client.models.list()] == [NAME] and served.client.models.retrieve(NAME).id == NAME


def test_what_the_door_refuses_has_the_same_form(served: Any) -> None:
    large, foreign = post(served, b" " * (2**16 + 1)), post(served, {}, Host="evil.example")
    unknown, method = (
        post(served, {}, "nothing"),
        httpx.get(f"{served.url}/v1/completions", headers={"Authorization": f"Bearer {TOKEN}"}),
    )
    assert [answer.status_code for answer in (large, foreign, unknown, method)] == [413, 400, 404, 405]
    assert method.headers["allow"] == "POST"
    assert [httpx.get(served.url + path).status_code for path in ("/v1/models", "/metrics", "/v1/hyperlens")] == [401] * 3
    for answer in (large, foreign, unknown, method, httpx.get(f"{served.url}/metrics")):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_model_without_a_template_does_not_chat(model: Any) -> None:
    plain = dataclasses.replace(model, tokenizer=build_tokenizer())
    with run(Service(plain)) as served:
        answer = post(served, {"model": NAME, **CHAT}, "chat/completions")
        said = httpx.get(f"{served.url}/v1/hyperlens", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert answer.status_code == 400 and "send its text as prompt" in answer.json()["error"]["message"]
    assert (said["chat"], said["layers"], said["limits"]["context"]) == (False, LAYERS, 64)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_model_that_gives_nan_is_said_to_and_the_next_request_is_answered(
    served: Any, model: Any, temperature: int, caplog: pytest.LogCaptureFixture
) -> None:
    norm = model.network.model.norm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(math.nan)
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            complete(served, temperature=temperature)
    finally:
        with torch.no_grad():
            norm.copy_(kept)
    assert "NaN" in str(caught.value.body) and "--dtype" not in str(caught.value.body) and "--dtype" in caplog.text
    assert len(ids_of(complete(served).choices[0])) == COUNT


def test_a_bug_is_told_to_the_log_alone_and_the_next_request_is_answered(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a secret of the house")

    monkeypatch.setattr(Monitor, "generate", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(openai.InternalServerError) as caught:
        complete(served)
    assert "secret" not in str(caught.value.body) and "a secret of the house" in caplog.text
    monkeypatch.undo()
    assert len(ids_of(complete(served).choices[0])) == COUNT


def test_who_leaves_while_tokens_come_ends_them_within_one(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (True, False):
        with stand_still(served, monkeypatch, 3) as (go, made):
            body = {"model": NAME, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stream": stream}
            asked = {"json": body, "headers": {"Authorization": f"Bearer {TOKEN}"}, "timeout": 0.4}
            with contextlib.suppress(httpx.ReadTimeout), httpx.stream("POST", f"{served.url}/v1/completions", **asked) as got:
                lines = (line for line in got.iter_lines() if line)
                assert [next(lines)[:5] for _ in range(2)] == ["data:"] * 2
            wait_until(lambda: served.house.desk._running is None or served.house.desk._running.left.is_set())
            go.set()
            wait_until(lambda: not served.house.desk.running)
            assert len(made) == 3 or (stream and len(made) == 2), "it may have left before the third"
    assert served.house.desk.waiting == 0


def test_who_leaves_while_waiting_is_never_answered(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_still(served, monkeypatch) as (go, made):
        first, answers = in_background(lambda: complete(served))
        wait_until(lambda: len(made) == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{served.url}/v1/completions",
                json={"model": NAME, "prompt": "w50"},
                timeout=0.3,
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
        wait_until(lambda: served.house.desk.waiting == 0)
        go.set()
        first.join()
        wait_until(lambda: not served.house.desk.running)
        assert len(made) == COUNT == len(ids_of(answers[0].choices[0]))


def test_a_full_queue_and_a_long_wait_are_said(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with run(Service(model, queue=1, wait=0.5)) as served, stand_still(served, monkeypatch) as (go, made):
        first, answers = in_background(lambda: complete(served))
        wait_until(lambda: len(made) == 1)
        second, waited = in_background(lambda: complete(served))
        wait_until(lambda: served.house.desk.waiting == 1)
        with pytest.raises(openai.RateLimitError) as full:
            complete(served)
        assert int(full.value.response.headers["retry-after"]) >= 1 and full.value.code == "queue_full"
        second.join()
        assert waited[0].status_code == 503 and "0.5 seconds" in str(waited[0])
        go.set()
        first.join()
        assert len(ids_of(answers[0].choices[0])) == COUNT


def test_the_end_of_the_server_is_told_to_all_that_wait(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with run(Service(model, grace=0.0)) as served, stand_still(served, monkeypatch, 2) as (go, made):
        first, answers = in_background(lambda: [chunk for chunk in complete(served, stream=True)])
        wait_until(lambda: len(made) == 2)
        second, waited = in_background(lambda: complete(served))
        wait_until(lambda: served.house.desk.waiting == 1)
        loop = served.house.desk._running.loop
        loop.call_soon_threadsafe(served.house.close)
        second.join()
        wait_until(lambda: served.house.desk._running.left.is_set())
        go.set()
        first.join()
        third = post(served, {"model": NAME, "prompt": PROMPT})
    assert waited[0].status_code == third.status_code == 503 and "ending" in str(waited[0])
    assert isinstance(answers[0], openai.APIError) and "ending" in str(answers[0]) and len(made) == 2


def count(served: Any) -> dict[str, int]:
    """How requests have ended."""
    text = served.house.metrics.write().decode()
    found = re.findall(r'^hyperlens_requests_total{.*outcome="(\w+)"} (\S+)$', text, re.MULTILINE)
    return {outcome: int(float(number)) for outcome, number in found if float(number)}


@contextlib.contextmanager
def stand_still_reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[bytes]]]:
    """Lets the reading of requests stop until the event is set; with the bodies that were begun."""
    go, begun = threading.Event(), []
    usual = visits.read_job

    def read(body: bytes, *more: Any) -> Any:
        begun.append(body)
        go.wait(20)
        return usual(body, *more)

    monkeypatch.setattr(visits, "read_job", read)
    try:
        yield go, begun
    finally:
        go.set()
        monkeypatch.undo()


def test_no_more_requests_are_read_than_may_wait_and_who_left_is_not_read(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with run(Service(model, queue=2)) as served:
        with stand_still_reading(monkeypatch) as (go, begun):
            first, answers = in_background(lambda: complete(served))
            wait_until(lambda: len(begun) == 1)
            asked: Any = {"json": {"model": NAME, "prompt": "w50"}, "headers": {"Authorization": f"Bearer {TOKEN}"}}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}/v1/completions", timeout=0.3, **asked)
            assert served.house.clerk.reading == 2
            with pytest.raises(openai.RateLimitError, match="2 requests are being read") as full:
                complete(served)
            assert full.value.response.headers["retry-after"] == "1"
            go.set()
            first.join()
            wait_until(lambda: served.house.clerk.reading == 0)
        assert len(begun) == 1 and len(ids_of(answers[0].choices[0])) == COUNT
        wait_until(lambda: count(served) == {"answered": 1, "left": 1, "refused": 1})


def test_requests_are_counted_by_how_they_ended(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with run(Service(model, wait=0.2)) as served:
        with stand_still(served, monkeypatch) as (go, made):
            first, _ = in_background(lambda: complete(served))
            wait_until(lambda: len(made) == 1)
            with pytest.raises(openai.InternalServerError, match=r"0\.2 seconds"):
                complete(served)
            go.set()
            first.join()
        with monkeypatch.context() as patched:
            patched.setattr(visits, "read_job", lambda *_: 1 / 0)
            assert post(served, {}).status_code == 500
        with stand_still(served, monkeypatch, 3) as (go, made):
            body = {"model": NAME, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "stream": True}
            asked: Any = {"json": body, "headers": {"Authorization": f"Bearer {TOKEN}"}}
            with httpx.stream("POST", f"{served.url}/v1/completions", **asked) as got:
                lines = got.iter_lines()  # kept: with its iterator gone the client has left
                next(lines)
                wait_until(lambda: len(made) == 3)  # what stands still is this answer, and it cannot end
            wait_until(lambda: served.house.desk._running.left.is_set())
        assert list(complete(served, stream=True))
        wait_until(lambda: count(served) == {"answered": 2, "refused": 1, "failed": 1, "left": 1})


def test_others_are_answered_while_a_large_answer_is_written(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun, usual = threading.Event(), threading.Event(), visits.spell_json

    def write(document: Any) -> bytes:
        if "choices" in document:
            begun.set()
            go.wait(10)
        return usual(document)

    monkeypatch.setattr(visits, "spell_json", write)
    first, answers = in_background(lambda: complete(served))
    try:
        assert begun.wait(10)
        assert httpx.get(f"{served.url}/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=2).status_code == 200
    finally:
        go.set()
        first.join()
    assert len(ids_of(answers[0].choices[0])) == COUNT


def test_the_name_of_a_model_does_not_depend_on_the_working_folder(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(model)
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert service.name == NAME and Service(model).name == "small"


def test_metrics_count_tokens_and_requests_and_know_no_text(model: Any) -> None:
    with run(Service(model)) as served:
        tokens = complete(served, "w33 w44 w55").choices[0].hyperlens["tokens"]
        complete(served, extra_body={"hyperlens": {"focal_depth": 2}})
        post(served, {"model": "w99", "prompt": PROMPT})
        text = httpx.get(f"{served.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    values = dict(re.findall(r"^(hyperlens_\w+(?:{.*})?) (\S+)$", text, re.MULTILINE))
    who, how = f'model="{NAME}"', f'candidates="all",focal_depth="0",model="{NAME}"'
    defined = [token for token in tokens if token["effort"] is not None]
    assert float(values[f"hyperlens_tokens_total{{{who}}}"]) == 2 * COUNT
    assert float(values[f"hyperlens_confidence_count{{{how}}}"]) == COUNT, "what was read in another way is left out"
    assert float(values[f"hyperlens_effort_count{{{how}}}"]) == len(defined)
    assert float(values[f"hyperlens_effort_sum{{{how}}}"]) == pytest.approx(sum(one["effort"] for one in defined), abs=1e-4)
    early = sum(one["commit"] <= LAYERS / 2 for one in defined)
    assert float(values[f"hyperlens_early_tokens_total{{{how}}}"]) == early
    counts = {
        outcome: float(values[f'hyperlens_requests_total{{model="{NAME}",outcome="{outcome}"}}'])
        for outcome in ("answered", "refused")
    }
    assert counts == {"answered": 2, "refused": 1} and float(values[f"hyperlens_first_token_seconds_count{{{who}}}"]) == 2
    assert not re.search(r"w33|w44|w99|w20", text)


def test_the_page_names_the_numbers_that_there_are(served: Any) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    kinds = dict(re.findall(r"^# TYPE (hyperlens_\w+) (\w+)$", served.house.metrics.write().decode(), re.MULTILINE))
    named = set(re.findall(r"`(hyperlens_\w+)`", page)) - {"hyperlens_effort_count"}
    assert named == {name for name in kinds if not name.endswith("_created")}


def test_the_dashboard_asks_for_numbers_that_there_are(served: Any, call: Call, tmp_path: Path) -> None:
    status, out, _ = call("--dashboard", tmp_path / "grafana.json")
    assert status == 0 and "grafana.json" in out
    board = json.loads((tmp_path / "grafana.json").read_text(encoding="utf-8"))
    complete(served)
    text = served.house.metrics.write().decode()
    asked = {
        name
        for target in [one for panel in board["panels"] for one in panel["targets"]]
        for name in re.findall(r"hyperlens_\w+", target["expr"])
    }
    assert len(asked) > 8 and [name for name in asked if f"\n{name}{{" not in text] == []
    (tmp_path / "mine.json").write_text("{}")
    assert call("--dashboard", tmp_path / "mine.json")[0] == 2 and (tmp_path / "mine.json").read_text() == "{}"


def test_a_span_has_counts_and_means_and_no_text(model: Any) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with run(Service(model), provider.get_tracer("test")) as served:
        answer = complete(served, "w33 w44", extra_headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
        with pytest.raises(openai.BadRequestError):
            complete(served, "w20 " * 70)
    good, bad = kept.get_finished_spans()
    said: Any = good.attributes
    assert good.name == "text_completion" and f"{good.context.trace_id:x}" == "1" * 32 and good.end_time > good.start_time
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"], said["hyperlens.outcome"]) == (
        2,
        COUNT,
        "answered",
    )
    assert said["hyperlens.effort"] == pytest.approx(answer.model_extra["hyperlens"]["summary"]["effort"])
    assert not bad.status.is_ok and bad.attributes["hyperlens.outcome"] == "refused"
    assert not re.search("w33|w44|w20", "".join(span.to_json() for span in (good, bad)))


def test_the_environment_chooses_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracer = open_tracer()
    assert tracer.resource.attributes["service.name"] == "mine"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    with pytest.raises(Exception, match="pigeon") as caught:
        open_tracer()
    assert is_one_sentence(str(caught.value))


def test_a_collector_that_is_away_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "LONGEST_END", 0.1)
    gone = threading.Event()
    began = time.perf_counter()
    spans.end_soon(SimpleNamespace(shutdown=lambda: gone.wait(5)))
    assert time.perf_counter() - began < 2
    gone.set()
    ended: list[Callable[[], None]] = []
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setattr(spans.atexit, "register", lambda *call: ended.append(call))
    open_tracer()
    assert [call[0] for call in ended] == [spans.end_soon], "and nothing else ends the provider"
    spans.end_soon(*ended[0][1:])


def test_prompts_are_logged_only_where_that_was_asked_for(
    model: Any, served: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[dict[str, Any]] = []
    complete(served, "w33 w44")
    with run(Service(model, log=kept.append)) as open_house:
        text = complete(open_house, "w33 w44").choices[0].text
    assert kept == [{"prompts": ["w33 w44"], "answers": [text], "outcome": "answered"}]
    assert "w33" not in "".join(capfd.readouterr()) + caplog.text


def test_a_desk_serves_in_order_and_forgets_who_left() -> None:
    job: Any = object.__new__(Job)
    written: list[Ticket] = []

    async def visit() -> None:
        desk = Desk(written.append, 2, 60.0)
        tickets = [desk.submit(job), desk.submit(job)]
        with pytest.raises(Refusal, match="2 requests wait"):
            desk.submit(job)
        desk.leave(tickets[0])
        tickets.append(desk.submit(job))
        desk.open()
        assert [await ticket.events.get() for ticket in tickets] == [None] * 3
        assert written == tickets[1:] and desk.waiting == 0
        desk.close()
        desk.join()
        for ticket in tickets:
            desk.leave(ticket)

    asyncio.run(visit())


@pytest.mark.slow
def test_each_of_32_clients_gets_exactly_its_own_tokens_and_leaves_nothing_behind(model: Any) -> None:
    questions = make_questions(model, 32, 6)
    before = {thread.name for thread in threading.enumerate()}
    with run(Service(model, queue=64)) as served:
        complete(served)
        settled = {thread.name for thread in threading.enumerate()} - before
        tally: Tally = asyncio.run(ask_all(f"{served.url}/v1", TOKEN, questions, 3.0))
        assert settle(lambda: read_gauges(f"{served.url}/v1", TOKEN)) == 0
        assert {thread.name for thread in threading.enumerate()} - before == settled
        gc.collect()
        assert [one for one in gc.get_objects() if type(one) is Ticket] == []
    assert (tally.wrong, tally.failed) == ([], []) and len(tally.kinds) == 5 and min(tally.kinds.values()) >= 3
    assert {thread.name for thread in threading.enumerate()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "no model is named"),
        (("reference", "--host", "0.0.0.0"), "needed; give one with --token-file"),
        (("reference", "--port", "70000"), "port 70000"),
        (("no/such/folder", "--port", "0"), "there is no folder"),
        (("reference", "--port", "0", "--focal-depth", "16"), "focal depth 16"),
        (("reference", "--port", "0", "--lens", "logit", "--focal-depth", "2"), "the logit lens"),
        (("reference", "--port", "0", "--token-file", "nowhere"), "nowhere cannot be read"),
        (("reference", "--dashboard", "."), "is a folder"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(call: Call, words: tuple[str, ...], sentence: str) -> None:
    status, out, error = call(*words)
    assert (status, out) == (2, "") and sentence in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"queue": 0}, "queue is 0"),
        ({"wait": 0.0}, "wait is 0"),
        ({"wait": math.nan}, "wait is nan"),
        ({"candidates": 1}, "candidates is 1"),
        ({"stride": 0}, "stride is 0"),
    ],
)
def test_a_service_that_could_not_serve_is_refused(model: Any, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        Service(model, **wrong)
    assert is_one_sentence(str(caught.value))


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(call: Call) -> None:
    with open_socket("127.0.0.1", 0) as taken:
        status, _, error = call("no/such/folder", "--port", taken.getsockname()[1])
    assert status == 2 and "is taken" in error


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    folder = save(build_family("llama"), tmp_path / "small")
    words = ["serve", str(folder), "--port", "0", "--max-new-tokens", "60"]
    command = [sys.executable, "-c", "from hyperlens.cli import main; main()", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        first, second = (process.stdout.readline() for _ in range(2))  # type: ignore[union-attr]
        url, token = re.findall(r"http://\S+", first)[0], second.split()[1]
        with openai.OpenAI(base_url=url, api_key=token, max_retries=0) as client:
            prompt = random_ids(1, 3)[0].tolist()
            for stride in (2, 3):
                more = {"hyperlens": {"stride": stride}}
                client.completions.create(model="small", prompt=prompt, max_tokens=1, extra_body=more)
            stream = client.completions.create(model="small", prompt=prompt, max_tokens=60, stream=True)
            chunks = [next(stream)]
            process.send_signal(signal.SIGTERM)
            chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason, "an answer on its way has time to be finished"
        out, error = process.communicate(timeout=30)
    assert first.startswith("serving small at ") and (process.returncode, out) == (0, "")
    assert "Traceback" not in error and "coarse" not in error and "w" + str(chunks[0].choices[0].text.strip()) not in error
