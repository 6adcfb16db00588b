"""The live page's door to a server of ours: prompts go there, and its tokens come back as they are written."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

from hyperlens.errors import InputError, first_sentence
from hyperlens.viewer.library import Refused
from hyperlens.web import spell_event

NO_SERVER = "no server was given; start one with hyperlens serve MODEL, and give its address with --live URL"
ANSWER_SECONDS = 5.0
"""How long a server may take to say what it is. Tokens may take as long as they take."""
LARGEST_ANSWER = 2**16
"""Bytes that are read of a refusal."""
MISSHAPEN = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What comes of reading a document that is not as it should be, or none."""
PASSED_ON = (400, 404, 413, 429, 503)
"""Statuses of the server that are the page's as well; not 401, which is about the viewer's own token there."""
LARGEST_NUMBER = 10**6
"""Of a layer, a stride or a number of tokens."""
OURS = {"focal_depth", "stride", "candidates", "top_k"}


class Wanted(BaseModel):
    """What the page asks to be written, and how it is to be read."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)
    max_tokens: int = Field(64, ge=1, le=100_000)
    temperature: float = Field(0.0, ge=0, le=2)
    focal_depth: int | None = Field(None, ge=0, le=LARGEST_NUMBER)
    stride: int | None = Field(None, ge=1, le=LARGEST_NUMBER)
    candidates: int | None = Field(None, ge=2, le=LARGEST_NUMBER)
    top_k: int | None = Field(None, ge=0, le=LARGEST_NUMBER)
    chat: bool = False

    def ask(self, model: str) -> tuple[str, dict[str, Any]]:
        """The path of the request to the server, and its body; what was left away is as the server has it."""
        said = self.model_dump(include=self.model_fields_set & OURS)
        body = {
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "hyperlens": said,
        }
        if self.chat:
            return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": self.prompt}]}
        return "/v1/completions", body | {"prompt": self.prompt}


@dataclass(frozen=True)
class Live:
    """A `hyperlens serve`: its address, and its token where it wants one."""

    url: str
    token: str | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what is no address of a server."""
        try:
            parts = httpx.URL(self.url)
        except httpx.InvalidURL:
            parts = httpx.URL()
        if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or parts.query or parts.fragment:
            raise InputError(f'"{self.url}" is no address of a server; expected one such as http://127.0.0.1:8080')

    async def describe(self) -> dict[str, Any]:
        """What the server says of itself, with `connected` and, where it does not answer, `error`."""
        try:
            async with self._connect() as client:
                return {**await _ask(client), "connected": True, "error": None}
        except Refused as refused:
            return {"connected": False, "error": str(refused)}

    async def stream(self, wanted: Wanted) -> AsyncGenerator[str, None]:
        """Events of the tokens as they come, and of the end. Closing it ends the request to the server, and so the writing.

        Gives nothing before the server has agreed. Raises Refused with its reason where it does not.
        """
        async with self._connect() as client:
            path, body = wanted.ask(str((await _ask(client)).get("model", "")))
            async with (
                _explain(),
                client.stream("POST", path, json=body, timeout=httpx.Timeout(ANSWER_SECONDS, read=None)) as answer,
            ):
                if answer.status_code != 200:
                    raise await _read_refusal(answer)
                yield ""
                async for event in _translate(answer):
                    yield event

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        url = self.url.rstrip("/").removesuffix("/v1")  # which clients of OpenAI's interface want, and serve prints
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False) as client:
            yield client


async def _ask(client: httpx.AsyncClient) -> dict[str, Any]:
    """What the server says of itself. Raises Refused."""
    async with _explain():
        answer = await client.get("/v1/hyperlens")
        if answer.status_code == 401:
            raise Refused(502, f"the server at {client.base_url} wants another token; give it with --live-token-file")
        if answer.status_code != 200 or not isinstance(answer.json(), dict):
            raise Refused(502, f"what answers at {client.base_url} is no hyperlens serve; give the address of one with --live")
        return answer.json()


@asynccontextmanager
async def _explain() -> AsyncIterator[None]:
    """Say in one sentence that a server does not answer, or not as ours do."""
    try:
        yield
    except httpx.HTTPError as error:
        raise Refused(502, f"the server does not answer ({first_sentence(error)}); is hyperlens serve running there?") from None
    except MISSHAPEN:
        raise Refused(502, "the server answered with something that cannot be read; is it a hyperlens serve?") from None


async def _read_refusal(answer: httpx.Response) -> Refused:
    """Why the server refused, in its own words."""
    content = b""
    async for part in answer.aiter_bytes():
        content += part
        if len(content) > LARGEST_ANSWER:
            break
    status = answer.status_code if answer.status_code in PASSED_ON else 502
    try:
        said = json.loads(content)["error"]
        field = said.get("param")
        return Refused(status, str(said["message"]), field if isinstance(field, str) else None)
    except MISSHAPEN:
        return Refused(status, f"the server refused with status {answer.status_code}")


async def _translate(answer: httpx.Response) -> AsyncIterator[str]:
    """The server's events as the page's: one for each token, and a last one with what sums them up."""
    end: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        document = json.loads(data)
        if not isinstance(document, dict):
            raise TypeError("an event is an object")
        if "error" in document:
            error = document["error"]
            yield spell_event({"message": str(error.get("message") if isinstance(error, dict) else error)}, "error")
            return
        end |= document.get("hyperlens") or {}
        for choice in document.get("choices", []):
            for token in (choice.get("hyperlens") or {}).get("tokens", []):
                yield spell_event(token)
            end |= {"finish_reason": reason} if (reason := choice.get("finish_reason")) else {}
    yield spell_event(end, "end")
