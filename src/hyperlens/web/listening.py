"""Where a server of ours listens, with which token, and how it ends."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperlens.errors import InputError
from hyperlens.web.guard import App

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""The names of this machine that no other one can call it by."""
TOKEN_VARIABLE = "HYPERLENS_TOKEN"
SHORTEST_TOKEN = 8
LARGEST_FILE = 4096
"""Bytes of a file with a token."""
WAITING = 128
"""Connections that may wait to be taken."""
GRACE_SECONDS = 3
"""How long answers on their way may take when the server is to end."""


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(32)


def read_token(file: str | os.PathLike[str] | None, variable: str = TOKEN_VARIABLE) -> str | None:
    """The token in a file, or else in an environment variable; None where neither is given.

    It is no argument of a command, since other users of the machine see those. Raises InputError where the file cannot be
    read, or what it holds is no token: printable ASCII without spaces, of at least 8 characters.
    """
    if file is None:
        where, text = f"the variable {variable}", os.environ.get(variable)
    else:
        where = f"the token file {file}"
        text = _read_text(Path(file), where)
    if text is None:
        return None
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not re.fullmatch(r"[!-~]+", token):
        raise InputError(f"{where} holds no token; expected at least {SHORTEST_TOKEN} signs of ASCII without spaces")
    return token


def _read_text(file: Path, where: str) -> str:
    """A small file's text. Raises InputError for what has no end, or need not have one."""
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"{where} is no file; give one that holds the token alone")
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise InputError(f"{where} is larger than {LARGEST_FILE} bytes; give one that holds the token alone")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where} cannot be read ({getattr(error, 'strerror', None) or 'it is not text'})") from None


def check_address(host: str, token: str | None) -> None:
    """That others may reach the server only with a token which its owner chose. Raises InputError."""
    if token is None and not is_loopback(host):
        raise InputError(
            f"{host} can be reached by other machines, so that a token is needed; give one with --token-file or "
            f"{TOKEN_VARIABLE}, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether all addresses of a host are those of this machine for itself. Raises InputError where it has none."""
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for _, address in _find_addresses(host, 0))


def name_hosts(host: str) -> tuple[str, ...]:
    """The names that requests may call a server by which listens on `host`: any where it listens everywhere."""
    if host in ("", "*", "0.0.0.0", "::"):
        return ("*",)
    given = f"[{host.lower()}]" if ":" in host else host.lower()
    return LOOPBACK if is_loopback(host) and given in LOOPBACK else (*LOOPBACK, given)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free. Raises InputError where the port is taken or out of range, or the
    host is not this machine."""
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} does not exist; choose one from 1 to 65535, or 0 for any that is free")
    family, address = _find_addresses(host, port)[0]
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # with its protocol, asyncio sends at once
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(WAITING)  # two sockets can be bound to one port, but only one can listen
    except OSError as error:
        opened.close()
        raise InputError(_explain(error, host, port)) from None
    return opened


def spell_address(host: str, opened: socket.socket) -> str:
    """The address under which a page on a listening socket is opened, such as http://127.0.0.1:8765."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{opened.getsockname()[1]}"


def serve_app(app: App, opened: socket.socket, grace: float = GRACE_SECONDS, ending: Callable[[], None] = lambda: None) -> None:
    """Serve on a listening socket until SIGINT or SIGTERM, then return: no new request is taken, `ending` is called, and those
    on their way have `grace` seconds. Requests are not logged, since addresses and texts are private; what the application
    itself logs is."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=max(1, round(grace)),
    )

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            ending()
            await super().shutdown(sockets)

    server = Server(config)
    with opened, _end_on_signals(server):
        server.run(sockets=[opened])


@contextmanager
def _end_on_signals(server: Any) -> Iterator[None]:
    """Have signals end the server, and nothing else: uvicorn raises them again once it has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        server.should_exit = True

    before = {one: signal.signal(one, end) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _find_addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """The families and addresses of a host. Raises InputError where it has none."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InputError(f'there is no host "{host}"; give an address of this machine, such as 127.0.0.1') from None
    return [(family, address) for family, _, _, _, address in found]


def _explain(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is taken by another program; choose another with --port, or 0 for any that is free"
        case errno.EADDRNOTAVAIL:
            return f"{host} is no address of this machine; give one that is, such as 127.0.0.1"
        case errno.EACCES:
            return f"port {port} is kept for the system's own programs; choose one from 1024 up with --port"
    return f"port {port} of {host} cannot be listened on ({error.strerror}); choose another with --port"
