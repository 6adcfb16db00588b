"""What the tests of the viewer share: its server over some runs in a thread, and a real browser that looks at it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
TOKEN = "a-token-of-the-tests"


@contextmanager
def serve_runs(*folders: Path, live: str | None = None) -> Iterator[str]:
    """The address of a viewer of these runs and the server at `live`, as `hyperlens view` guards it, while the block runs."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    from hyperlens import viewer, web

    places = {folder.name: place for folder, place in zip(folders, viewer.find_places(list(folders)), strict=True)}
    app = web.guard(viewer.make_app(places, viewer.Live(live) if live else None), TOKEN, web.name_hosts("127.0.0.1"))
    with socket.create_server(("127.0.0.1", 0)) as opened:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def open_chromium(*without: str) -> Iterator[Any]:
    """Debian's Chromium, without a window or what the options take away; the test is skipped where there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", *without])
        yield browser
        browser.close()
