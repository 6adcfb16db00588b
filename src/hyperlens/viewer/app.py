"""The viewer's interface: what its pages ask for, under /api, and the pages themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

import hyperlens
from hyperlens.errors import ArtefactError, HyperLensError, InputError
from hyperlens.runs.caveats import pick_main
from hyperlens.viewer import pages, samples, tokens
from hyperlens.viewer.library import Library, Opened, Refused
from hyperlens.viewer.live import NO_SERVER, Live, Wanted
from hyperlens.viewer.places import Place
from hyperlens.web import spell_event, spell_json

STATIC = Path(__file__).parent / "static"
Name = Annotated[str | None, Query(max_length=500)]
Number = Annotated[int | None, Query(ge=-(2**53), le=2**53)]
"""Any that JSON and floats have exactly."""


def make_app(places: Mapping[str, Place], live: Live | None = None) -> FastAPI:
    """The application over the runs of some places, by the names that they are shown under; without its guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    library = Library(places)
    _add_errors(app)
    _add_runs(app, library, live)
    _add_live(app, live)
    _add_files(app)
    return app


def _add_runs(app: FastAPI, library: Library, live: Live | None) -> None:
    @app.get("/api/runs")
    def runs() -> Response:
        return _answer({"version": hyperlens.__version__, "live": live is not None, "runs": pages.list_runs(library)})

    @app.get("/api/runs/{id}")
    def run(id: str) -> Response:
        with library.reading(id) as (opened,):
            return _answer(pages.describe_run(library, opened, id))

    @app.get("/api/runs/{id}/effort")
    def effort(id: str, model: Name = None, lens: Name = None) -> Response:
        with library.reading(id) as (opened,):
            return _answer(pages.tabulate_effort(library, opened, *_choose_pair(opened, model, lens)))

    @app.get("/api/runs/{id}/samples")
    def list_samples(
        id: str,
        model: Name = None,
        lens: Name = None,
        task: Name = None,
        level: Number = None,
        depth: Number = None,
        sort: samples.Sort = "effort",
        order: Literal["down", "up"] = "down",
        search: Annotated[str, Query(max_length=500)] = "",
        show: samples.Show = "all",
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        with library.reading(id) as (opened,):
            model, lens = _choose_pair(opened, model, lens)
            at = _choose_depth(opened, model, lens, depth)
            query = samples.Query(model, lens, at, task, level, sort, order == "down", search, show, offset, limit)
            return _answer({**samples.list_samples(library, opened, query), "depth": at})

    @app.get("/api/runs/{id}/sample")
    def sample(
        id: str,
        task: Annotated[str, Query(max_length=500)],
        sample: Annotated[int, Query(ge=0, le=10**9)],
        model: Name = None,
        lens: Name = None,
        reading: Name = None,
    ) -> Response:
        with library.reading(id) as (opened,):
            pair = _choose_pair(opened, model, lens)
            return _answer(tokens.read_sample(library, opened, *pair, task, sample, reading))

    @app.get("/api/compare")
    def compare(
        before: str,
        after: str,
        before_model: Name = None,
        after_model: Name = None,
        lens: Name = None,
        depth: Number = None,
    ) -> Response:
        names = (before_model, after_model, lens)
        with library.reading(before, after) as (one, other):
            return _answer(pages.describe_comparison(library.compare(one, other, names, depth)))


def _add_live(app: FastAPI, live: Live | None) -> None:
    @app.get("/api/live")
    async def describe_live() -> Response:
        return _answer(await live.describe() if live else {"connected": False, "error": NO_SERVER})

    @app.post("/api/live")
    async def write_live(wanted: Wanted) -> Response:
        if live is None:
            raise Refused(409, NO_SERVER)
        events = live.stream(wanted)
        await anext(events)  # raises what the server refuses, before an answer has begun
        return StreamingResponse(_close_after(events), media_type="text/event-stream")


async def _close_after(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events; however they end, the request behind them is ended too."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except Refused as refused:
            yield spell_event({"message": str(refused)}, "error")


def _add_files(app: FastAPI) -> None:
    """The pages, which hold no data and so need no token, and the figures' script, which plotly brings."""
    spec = importlib.util.find_spec("plotly")
    plotly = Path(spec.origin).parent / "package_data" / "plotly.min.js" if spec and spec.origin else STATIC / "none"

    @app.get("/")
    def page() -> Response:
        return _send_file(STATIC / "index.html")

    @app.get("/static/plotly.min.js")
    def figures() -> Response:
        return _send_file(plotly)

    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False))


def _send_file(file: Path) -> Response:
    if not file.is_file():
        raise Refused(404, f"this installation has no {file.name}; install hyperlens again")
    return FileResponse(file)


def _choose_pair(opened: Opened, model: str | None, lens: str | None) -> tuple[str, str]:
    """The model and lens that are meant. Raises Refused with the field that names none, or none of those that were measured."""
    try:
        return opened.run.choose_pair(model, lens)
    except InputError as error:
        known = model in opened.run.models or (model is None and len(opened.run.models) == 1)
        given = lens if known else model
        raise Refused(400 if given is None else 404, str(error), "lens" if known else "model") from None


def _choose_depth(opened: Opened, model: str, lens: str, depth: int | None) -> int:
    """The focal depth that is meant, by default the one that stands for the lens. Raises Refused."""
    document = opened.run.models[model]["lenses"][lens]
    if depth is not None and depth not in document["focal_depths"]:
        there = ", ".join(map(str, document["focal_depths"]))
        raise Refused(404, f"focal depth {depth} was not read; choose from {there}", "depth")
    return pick_main(document) if depth is None else depth


def _answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(spell_json(document), status, headers, media_type="application/json")


def _add_errors(app: FastAPI) -> None:
    """Every refusal as one sentence, with the field that it is about."""

    def refuse(status: int, sentence: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
        return _answer({"error": {"message": sentence, "field": field}}, status, headers)

    @app.exception_handler(HyperLensError)
    def refused(request: Request, error: HyperLensError) -> Response:
        if isinstance(error, Refused):
            return refuse(error.status, str(error), error.field)
        return refuse(409 if isinstance(error, ArtefactError) else 400, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refuse(400, f"the request's body is not JSON ({first['ctx']['error']})", "body")
        field = ".".join(str(part) for part in first["loc"][1:])
        if not field:
            return refuse(400, "the request's body is no JSON object; send one, as application/json", "body")
        return refuse(400, f"{field} cannot be used ({first['msg']})", field)

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> Response:
        name = type(error).__name__
        return refuse(500, f"the viewer could not answer ({name}); where it was started stands why")

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's own, for a body that is no text, too deep, or has too large a number
            return refuse(400, "the request's body cannot be read as JSON; send an object of texts and numbers", "body")
        headers = {"Allow": _list_methods(app, request)} if error.status_code == 405 else None
        sentence = f"{error.detail}: there is nothing at {request.url.path} for {request.method}"
        return refuse(error.status_code, sentence, headers=headers)


def _list_methods(app: FastAPI, request: Request) -> str:
    """What may be done at the address of a request; files, which are under no route of their own, are only read."""
    here = [route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in here for method in route.methods or ()})) or "GET, HEAD"
