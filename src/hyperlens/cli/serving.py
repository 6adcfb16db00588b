"""The command that answers others: `serve`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperlens.cli.app import (
    LENS_HELP,
    Device,
    DeviceMap,
    DType,
    Host,
    Port,
    RemoteCode,
    Revision,
    TokenFile,
    app,
    load,
    open_lens,
    require_extras,
    working,
)
from hyperlens.errors import HyperLensWarning, InputError

DASHBOARD = Path(__file__).parent.parent / "data" / "grafana.json"
LARGEST_REQUEST = 4 * 2**20
"""Bytes."""
GRACE_SECONDS = 10.0
"""How long the answer on its way may take when the server ends."""
MARGIN_SECONDS = 2.0
"""How much longer its connection may take: it is told why its answer ends."""


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="As for the other commands: a folder, a .gguf file, a hub id …")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    token_file: TokenFile = None,
    lens: Annotated[str, typer.Option("--lens", help=LENS_HELP)] = "hyper",
    focal_depth: Annotated[
        int | None, typer.Option("--focal-depth", help="One number; 0, or what a tuned lens was trained for.")
    ] = None,
    stride: Annotated[int, typer.Option("--stride", help="Read every so many states.")] = 1,
    candidates: Annotated[
        int | None, typer.Option("--candidates", help="Read among the model's own K top tokens; else the whole vocabulary.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer of a request.")] = 512,
    queue: Annotated[int, typer.Option("--queue", help="Requests that may wait; more are told to come back.")] = 64,
    wait: Annotated[float, typer.Option("--wait", help="Seconds that a request may wait.")] = 60.0,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="Show /metrics to those without the token.")] = False,
    telemetry: Annotated[bool, typer.Option("--telemetry", help="Send OpenTelemetry spans where OTEL_… says.")] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers to standard error.")] = False,
    dashboard: Annotated[
        Path | None, typer.Option("--dashboard", help="Write the dashboard for Grafana to this file, and leave.")
    ] = None,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Serve MODEL to clients of OpenAI's interface, with the effort of each token beside its answers."""
    if dashboard is not None:
        return _write_dashboard(dashboard)
    if model is None:
        raise InputError("no model is named; give one behind serve, or --dashboard FILE for the dashboard")
    from hyperlens.spelling import spell
    from hyperlens.web import check_address, guard, name_hosts, new_token, open_socket, read_token, serve_app, spell_address

    given = read_token(token_file)
    check_address(host, given)
    token = given or new_token()
    with open_socket(host, port) as opened:
        with working("loading and proving the model"):
            serving = _open_serving()
            tracer = serving.open_tracer() if telemetry else None
            read = _open_lens(lens, focal_depth)
            loaded = load(model, dtype, device, device_map, revision, trust_remote_code)
            limits: dict[str, Any] = {"largest_answer": max_new_tokens, "queue": queue, "wait": wait, "grace": GRACE_SECONDS}
            log = _log_texts if log_prompts else None
            service = serving.Service(loaded, read, stride, candidates, **limits, log=log)
            made = serving.make_app(service, tracer)
        private = ("/v1",) if open_metrics else ("/v1", "/metrics")
        guarded = guard(made, token, name_hosts(host), LARGEST_REQUEST, private, serving.describe_refusal)
        print(f"serving {spell(service.name)} at {spell_address(host, opened)}/v1 (Ctrl-C ends it)", flush=True)
        print(f"token: {token if given is None else 'the one that was given'}", flush=True)
        warnings.simplefilter("once", HyperLensWarning)  # for who runs the server, not one for each request
        warnings.filterwarnings("ignore", ".*effort is coarse$", HyperLensWarning)  # clients choose strides
        serve_app(guarded, opened, GRACE_SECONDS + MARGIN_SECONDS, made.state.house.close)


def _open_lens(name: str, focal_depth: int | None) -> Any:
    """The lens of `--lens`, at one focal depth. Raises InputError and ArtefactError."""
    if name == "logit":
        if focal_depth:
            raise InputError("the logit lens reads at focal depth 0; leave --focal-depth away, or choose --lens hyper")
        return open_lens(name)
    usual = "0" if name == "hyper" else ""
    return open_lens(name, usual if focal_depth is None else str(focal_depth), "cached")


def _open_serving() -> Any:
    """The room that serves. Raises ModelError where what it needs is not installed."""
    require_extras("serve", "serve", ("fastapi", "uvicorn", "prometheus_client"))
    from hyperlens import serving

    return serving


def _write_dashboard(place: Path) -> None:
    from hyperlens.artefact import check_file, write_file

    write_file(check_file(place, '"uid": "hyperlens"'), DASHBOARD.read_text(encoding="utf-8"))
    print(f"wrote {place}; import it in Grafana with a Prometheus source that reads /metrics")


def _log_texts(entry: dict[str, Any]) -> None:
    """One line of JSON, in which no text can be anything but text."""
    print(json.dumps(entry), file=sys.stderr, flush=True)
