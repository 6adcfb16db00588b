"""What stands before each of our servers: who may call it, by which name, how much may be sent, and what browsers may do."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from hyperlens.web.answers import spell_json

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
"""An ASGI application."""

LARGEST_BODY = 2**20
"""Bytes of a request's body, unless a server says otherwise."""
MOST_AT_ONCE = 512
"""Requests for data that are answered at one time, unless a server says otherwise."""
MOST_DIGITS = 18
"""Of a length that is worth comparing."""
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""What a page of ours may load and run: only what the same server sends. Figures set styles on their elements."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
NO_BODY: Message = {"type": "http.request", "body": b"", "more_body": False}


def describe_refusal(status: int, sentence: str) -> dict[str, Any]:
    """The body of a refusal that is about no field: `{"error": {"message", "field": null}}`."""
    return {"error": {"message": sentence, "field": None}}


def guard(
    app: App,
    token: str | None,
    hosts: Sequence[str],
    largest_body: int = LARGEST_BODY,
    prefixes: Sequence[str] = ("/api",),
    describe: Callable[[int, str], dict[str, Any]] = describe_refusal,
    most_at_once: int = MOST_AT_ONCE,
) -> App:
    """The application behind checks, each refusal being JSON: what `describe` makes of its status and sentence.

    400 where the Host header is none of `hosts` (names without a port; "*" for any), so that no foreign page can reach the
    server under a name of its own; 401 under one of `prefixes` without `Authorization: Bearer TOKEN` (no check where `token`
    is None); 503 while `most_at_once` requests with the token are being answered; 413 for a body of more than `largest_body`
    bytes, whether it says so or not. Bodies are read only of requests with the token: elsewhere none is wanted, and the
    application gets an empty one. All answers carry `HEADERS`, those under `prefixes` are not stored. Websockets are closed.
    """

    async def refuse(send: Send, status: int, sentence: str) -> None:
        await _send_json(send, status, describe(status, sentence))

    admitted = _limit(app, refuse, largest_body, most_at_once)

    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers, private = dict(scope["headers"]), _lies_under(scope["path"], prefixes)
        send = _add_headers(send, private)
        if "*" not in hosts and _name_host(headers.get(b"host", b"")) not in hosts:
            return await refuse(send, 400, "this server does not go by that name; open the address that it printed")
        if not private:
            return await app(scope, _give_back([NO_BODY], receive), send)
        if token is not None and not _is_bearer(headers.get(b"authorization", b""), token):
            return await refuse(send, 401, "the token is missing or wrong; send the one of this start as Authorization: Bearer")
        await admitted(scope, receive, send)

    return guarded


def _limit(app: App, refuse: Callable[[Send, int, str], Awaitable[None]], largest_body: int, most_at_once: int) -> App:
    """The application for so many requests at one time, with bodies of at most so many bytes."""
    answering = 0

    async def limited(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal answering
        if answering >= most_at_once:
            return await refuse(send, 503, f"{answering} requests are being answered, which is the most; ask again later")
        answering += 1
        try:
            body = await _read_body(dict(scope["headers"]), receive, largest_body)
            if body is not None:
                return await app(scope, _give_back(body, receive), send)
        finally:
            answering -= 1
        await refuse(send, 413, f"the request is larger than {largest_body} bytes, which is the most; send less")

    return limited


def _lies_under(path: str, prefixes: Sequence[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)


def _name_host(header: bytes) -> str:
    """The name in a Host header, without its port."""
    return re.sub(r":[0-9]+\Z", "", header.decode("latin-1").lower())


def _is_bearer(header: bytes, token: str) -> bool:
    """Whether an Authorization header holds the token; the word before it is the same in any case."""
    scheme, _, given = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


def _add_headers(send: Send, private: bool) -> Send:
    more = HEADERS | {"cache-control": "no-store" if private else "no-cache"}
    encoded = [(name.encode(), value.encode()) for name, value in more.items()]

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [one for one in message.get("headers", []) if one[0].decode("latin-1").lower() not in more]
            message = {**message, "headers": [*kept, *encoded]}
        await send(message)

    return with_headers


async def _read_body(headers: dict[bytes, bytes], receive: Receive, most: int) -> list[Message] | None:
    """The messages that a body came in; None where it is too large. Its length is counted, since it need not be as it says."""
    said = headers.get(b"content-length", b"0")
    if not said.isdigit() or len(said) > MOST_DIGITS or int(said) > most:
        return None
    messages, size = [], 0
    while True:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if size > most:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return messages


def _give_back(messages: list[Message], receive: Receive) -> Receive:
    """Receives what was read already, then what comes: that the client left."""
    left = iter(messages)

    async def receive_again() -> Message:
        return next(left, None) or await receive()

    return receive_again


async def _send_json(send: Send, status: int, document: dict[str, Any]) -> None:
    content = spell_json(document)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
