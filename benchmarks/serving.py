"""Whether a server under load gives each of many clients exactly its own tokens, and keeps nothing of those that leave.

`python benchmarks/serving.py` starts `hyperlens serve` on the stories260K of `$HYPERLENS_SHARED/models` (or on `--model`). For
60 seconds 32 clients of the official `openai` package ask it by turns: greedily and by seed, whole and streamed, and some leave
half-way, or while they wait. What each should get is computed beforehand by the model's own `generate`. Prints JSON, and exits
1 where an answer was wrong, a request failed, or something was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import hyperlens as hl

SHARED = Path(os.environ.get("HYPERLENS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TOKEN = "benchmark-token"
SETTLING = 20.0
"""Seconds within which all that clients left must be gone."""


@dataclass(frozen=True)
class Question:
    """A prompt of token ids, and what the model says to it: greedily, and with a seed at temperature 1."""

    prompt: list[int]
    seed: int
    greedy: list[int]
    sampled: list[int]


@dataclass
class Tally:
    """What the clients got."""

    kinds: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def main() -> None:
    """Serve, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(SHARED / "models" / "stories260K"))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--focal-depth", type=int, default=0)
    options = parser.parse_args()
    questions = make_questions(hl.load_model(options.model), options.clients, options.new_tokens)
    with run_server(options.model, options.focal_depth) as (process, url):
        asyncio.run(ask_all(url, TOKEN, questions, 3.0))  # what is loaded and compiled on first use is no leftover
        before = weigh(process.pid)
        began = time.perf_counter()
        tally = asyncio.run(ask_all(url, TOKEN, questions, options.seconds))
        seconds = time.perf_counter() - began
        queue = settle(lambda: read_gauges(url, TOKEN))
        after = weigh(process.pid)
    found = describe(tally, seconds) | {
        "clients": options.clients,
        "threads_left": after["threads"] - before["threads"],
        "queue_left": queue,
        "memory_mb": [before["memory_mb"], after["memory_mb"]],
        "exit_status": process.returncode,
    }
    print(json.dumps(found, indent=2))
    sys.exit(bool(tally.wrong or tally.failed or found["threads_left"] > 0 or queue or process.returncode))


def make_questions(model: hl.Model, count: int, new_tokens: int, length: int = 8) -> list[Question]:
    """As many prompts of random tokens, all different, and what the model's own generate makes of each."""
    random = torch.Generator().manual_seed(7)
    vocabulary = len(model.splice.embedding)
    prompts = torch.randint(vocabulary // 4, vocabulary, (count, length), generator=random)
    return [
        Question(prompt.tolist(), seed, *(_generate(model, prompt[None], new_tokens, seed, greedy) for greedy in (True, False)))
        for seed, prompt in enumerate(prompts)
    ]


def _generate(model: hl.Model, prompt: torch.Tensor, new_tokens: int, seed: int, greedy: bool) -> list[int]:
    network: Any = model.network
    chosen = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = network.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, **chosen)
    return made[0, prompt.shape[1] :].tolist()


async def ask_all(url: str, token: str, questions: Sequence[Question], seconds: float) -> Tally:
    """Let one client per question ask it again and again, each time in another way, for so many seconds."""
    import openai

    tally, until = Tally(), time.perf_counter() + seconds
    async with openai.AsyncOpenAI(base_url=url, api_key=token, max_retries=0, timeout=120) as client:
        name = (await client.models.list()).data[0].id
        ways = [ask_whole, ask_streamed, leave_half_way, ask_sampled, leave_waiting]

        async def be_client(number: int) -> None:
            turn = number
            while time.perf_counter() < until:
                way: Callable[..., Awaitable[None]] = ways[turn % len(ways)]
                try:
                    await way(client, name, questions[number], tally)
                    tally.kinds[way.__name__] += 1
                except (openai.APIError, AssertionError) as error:
                    tally.failed.append(f"{way.__name__}: {error}")
                turn += 1

        await asyncio.gather(*(be_client(number) for number in range(len(questions))))
    return tally


async def ask_whole(client: Any, name: str, question: Question, tally: Tally) -> None:
    """One greedy answer, whole."""
    answer = await client.completions.create(model=name, prompt=question.prompt, max_tokens=len(question.greedy), temperature=0)
    check(tally, "whole", _ids(answer.choices[0]), question.greedy)
    assert answer.usage.completion_tokens == len(question.greedy)


async def ask_streamed(client: Any, name: str, question: Question, tally: Tally) -> None:
    """One greedy answer, streamed."""
    stream = await client.completions.create(
        model=name, prompt=question.prompt, max_tokens=len(question.greedy), temperature=0, stream=True
    )
    ids = [token async for chunk in stream for token in _ids(chunk.choices[0])]
    check(tally, "streamed", ids, question.greedy)


async def ask_sampled(client: Any, name: str, question: Question, tally: Tally) -> None:
    """One answer drawn with the client's seed."""
    answer = await client.completions.create(
        model=name, prompt=question.prompt, max_tokens=len(question.sampled), temperature=1, seed=question.seed
    )
    check(tally, "sampled", _ids(answer.choices[0]), question.sampled)


async def leave_half_way(client: Any, name: str, question: Question, tally: Tally) -> None:
    """Leave when half of the answer is there."""
    stream = await client.completions.create(
        model=name, prompt=question.prompt, max_tokens=len(question.greedy), temperature=0, stream=True
    )
    ids: list[int] = []
    async for chunk in stream:
        ids += _ids(chunk.choices[0])
        if len(ids) >= len(question.greedy) // 2:
            break
    await stream.close()
    check(tally, "left", ids, question.greedy[: len(ids)])


async def leave_waiting(client: Any, name: str, question: Question, tally: Tally) -> None:
    """Ask, and leave before anything can have come."""
    asked = client.completions.create(model=name, prompt=question.prompt, max_tokens=len(question.greedy), temperature=0)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asked, 0.02)


def check(tally: Tally, kind: str, got: list[int], wanted: list[int]) -> None:
    """Count an answer, and keep it where it is not the one that is wanted."""
    tally.tokens += len(got)
    if got != wanted:
        tally.wrong.append(f"{kind}: {got} instead of {wanted}")


def _ids(choice: Any) -> list[int]:
    return [token["token_id"] for token in choice.hyperlens["tokens"]]


def describe(tally: Tally, seconds: float) -> dict[str, Any]:
    """The tally, and its rates."""
    return {
        "seconds": round(seconds, 1),
        "requests": dict(tally.kinds),
        "tokens": tally.tokens,
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "wrong_answers": len(tally.wrong),
        "failed_requests": len(tally.failed),
        "first_problems": [*tally.wrong[:3], *tally.failed[:3]],
    }


def settle(read: Callable[[], int], seconds: float = SETTLING) -> int:
    """What is left once nothing changes any more: 0 as soon as there is nothing."""
    until = time.perf_counter() + seconds
    while (left := read()) and time.perf_counter() < until:
        time.sleep(0.1)
    return left


def read_gauges(url: str, token: str) -> int:
    """Requests that wait or are answered, as the server's own metrics say."""
    import httpx

    text = httpx.get(url.replace("/v1", "/metrics"), headers={"Authorization": f"Bearer {token}"}).text
    return sum(int(float(value)) for value in re.findall(r"^hyperlens_(?:queue_length|running){.*} (.*)$", text, re.MULTILINE))


def weigh(process: int) -> dict[str, float]:
    """Threads and resident memory of a process, by Linux."""
    status = Path(f"/proc/{process}/status").read_text()
    threads, memory = (int(re.findall(rf"^{name}:\s*(\d+)", status, re.MULTILINE)[0]) for name in ("Threads", "VmRSS"))
    return {"threads": threads, "memory_mb": round(memory / 1024, 1)}


@contextlib.contextmanager
def run_server(model: str, focal_depth: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `hyperlens serve` of its own, ended by SIGTERM; gives its process and address."""
    words = ["serve", model, "--port", "0", "--focal-depth", str(focal_depth), "--queue", "128"]
    command = [sys.executable, "-c", "from hyperlens.cli import main; main()", *words]
    environment = os.environ | {"HYPERLENS_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            yield process, re.findall(r"http://\S+", first)[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    main()
