"""The command `view`: runs in the browser."""

from __future__ import annotations

import html
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperlens.cli.app import Host, Json, Port, TokenFile, app, name_folders, print_json, require_extras
from hyperlens.errors import ArtefactError

LEADING = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>HyperLens</title>'
    '<meta http-equiv="refresh" content="0; url={0}"><a href="{0}">The viewer</a></html>'
)


@app.command("view")
def view_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS", help="Folders of studies, or a folder that holds some.")],
    host: Host = "127.0.0.1",
    port: Port = 8765,
    token_file: TokenFile = None,
    live: Annotated[str, typer.Option("--live", help="Address of a hyperlens serve, for the live page.")] = "",
    live_token_file: Annotated[
        Path | None, typer.Option("--live-token-file", help="File with that server's token, or HYPERLENS_LIVE_TOKEN.")
    ] = None,
    open: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
    json: Json = False,
) -> None:
    """Look at runs in the browser: overview, effort by difficulty, single tokens, two runs side by side."""
    viewer, web = _load_viewer()
    given = web.read_token(token_file)
    web.check_address(host, given)
    places = _find_runs(viewer, runs)
    server = viewer.Live(live, web.read_token(live_token_file, "HYPERLENS_LIVE_TOKEN")) if live else None
    token = given or web.new_token()
    guarded = web.guard(viewer.make_app(places, server), token, web.name_hosts(host))
    with web.open_socket(host, port) as opened:
        url = web.spell_address(host, opened)
        if json:
            print_json({"url": url, "host": host, "port": opened.getsockname()[1], "token": token})
        else:
            _announce(url, None if given else token)
        with _open_page(f"{url}/#token={token}") if open else nullcontext():
            web.serve_app(guarded, opened)


def _load_viewer() -> tuple[Any, Any]:
    """The rooms of the viewer and of the web. Raises ModelError where what they need is not installed."""
    require_extras("view", "view", ("fastapi", "httpx", "uvicorn"))
    from hyperlens import viewer, web

    return viewer, web


def _find_runs(viewer: Any, runs: list[Path]) -> Mapping[str, Any]:
    """The runs to show by the names that set them apart; says which cannot be read. Raises ArtefactError where none can."""
    from hyperlens.spelling import spell

    places = viewer.find_places(runs)
    errors = [spell(error) for error in viewer.find_errors(places)]
    if len(errors) == len(places):
        more = f" (and {len(errors) - 1} more that cannot be shown)" if len(errors) > 1 else ""
        raise ArtefactError(f"{errors[0]}{more}")
    for error in errors:
        print(f"hyperlens: note: {error}", file=sys.stderr)
    names = {folder: name for name, folder in name_folders(str(place.folder) for place in places).items()}
    return {names.get(str(place.folder), str(place.folder)): place for place in places}


@contextmanager
def _open_page(url: str) -> Iterator[None]:
    """Have the browser open an address, by way of a file that only its owner can read and that is gone at the end: what the
    browser is started with stands in the list of processes, and the address has the token."""
    import webbrowser

    with tempfile.TemporaryDirectory(prefix="hyperlens-") as folder:
        page = Path(folder) / "viewer.html"
        page.touch(0o600)
        page.write_text(LEADING.format(html.escape(url)), encoding="utf-8")
        webbrowser.open(page.as_uri())
        yield


def _announce(url: str, token: str | None) -> None:
    """Say where the page is. A new token is behind the #, which browsers do not send; one that was given is not shown."""
    print(f"Page: {url}/#token={token}" if token else f"Page: {url}/ (it asks for the token that was given)", flush=True)
    warning = " Who has this address can read these runs." if token else ""
    print(f"Ctrl-C ends it.{warning}", file=sys.stderr, flush=True)
