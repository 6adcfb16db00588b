"""The routes of an OpenAI-compatible server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from hyperlens.serving.clerk import Clerk
from hyperlens.serving.desk import Desk
from hyperlens.serving.metrics import Metrics
from hyperlens.serving.refusals import Refusal, describe_refusal
from hyperlens.serving.service import Service
from hyperlens.serving.visits import JSON, House, Visit
from hyperlens.serving.writing import NOTHING_TOLD, write_answers

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(service: Service, tracer: Any = None) -> FastAPI:
    """The application that serves a model; `app.state.house.close` begins its end. With an OpenTelemetry `tracer`,
    each request is a span."""
    desk = Desk(lambda ticket: write_answers(ticket, metrics.note_token), service.queue, service.wait)
    metrics = Metrics(service, desk)
    house = House(service, desk, metrics, Clerk(service.queue), tracer)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        desk.open()
        yield
        desk.close()
        desk.join()
        house.clerk.close()

    app = FastAPI(lifespan=live, openapi_url=None)  # its own pages would load scripts from elsewhere
    app.state.house = house
    _add_routes(app, house)
    _add_refusals(app)
    return app


def _add_routes(app: FastAPI, house: House) -> None:
    service, began = house.service, int(time.time())
    model = {"id": service.name, "object": "model", "created": began, "owned_by": "hyperlens"}

    @app.post("/v1/chat/completions")
    async def answer_chat(request: Request) -> Response:
        return await Visit(house, request, chat=True).respond()

    @app.post("/v1/completions")
    async def answer_prompt(request: Request) -> Response:
        return await Visit(house, request, chat=False).respond()

    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSON({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        if name != service.name:
            raise Refusal(404, f'there is no model of that name here; this server has "{service.name}"', "model")
        return JSON(model)

    @app.get("/v1/hyperlens")
    async def show_service() -> Response:
        return JSON(service.describe())

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(house.metrics.write(), media_type=METRICS_TYPE)


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> Response:
        return JSON({"error": refusal.describe()}, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        sentences = {404: "there is nothing at this address; see GET /v1/models", 405: "this address takes another method"}
        sentence = sentences.get(error.status_code, str(error.detail))
        return JSON(describe_refusal(error.status_code, sentence), error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def part(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def admit(_: Request, error: Exception) -> Response:
        return JSON(describe_refusal(500, NOTHING_TOLD), 500)
