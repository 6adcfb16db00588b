"""One span of OpenTelemetry for each request: counts and means, never a text."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from hyperlens.errors import InputError
from hyperlens.models.precision import require_extra

EXPORTERS = ("otlp", "console")
LONGEST_END = 3.0
"""Seconds that spans which are still to be sent may delay the end of the process."""


def open_tracer() -> Any:
    """A tracer whose exporter the environment chooses: OTEL_TRACES_EXPORTER (otlp, the default, or console), and what else
    OTEL_ variables say of where to and what this server is called. Raises ModelError without the extra, InputError."""
    require_extra("opentelemetry.sdk", "--telemetry", "telemetry")
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": "hyperlens"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # its own end waits for a collector that is away
    provider.add_span_processor(BatchSpanProcessor(_make_exporter(os.environ.get("OTEL_TRACES_EXPORTER", EXPORTERS[0]))))
    atexit.register(end_soon, provider)
    return provider.get_tracer("hyperlens.serving")


def end_soon(provider: Any) -> None:
    """Have a provider send what it still has, for so long as the end of the process may wait."""
    ending = threading.Thread(target=provider.shutdown, name="hyperlens-telemetry", daemon=True)
    ending.start()
    ending.join(LONGEST_END)


def record_span(
    tracer: Any, name: str, headers: Mapping[str, str], began: int, attributes: Mapping[str, Any], failure: str | None
) -> None:
    """Record a request that `began` at a time in ns and ends now, under the span that its headers name, if they do."""
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode

    known = {key: value for key, value in attributes.items() if value is not None}
    span = tracer.start_span(name, extract(dict(headers)), SpanKind.SERVER, known, start_time=began)
    if failure is not None:
        span.set_status(Status(StatusCode.ERROR, failure))
    span.end(time.time_ns())


def _make_exporter(kind: str) -> Any:
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if kind != "otlp":
        raise InputError(f'OTEL_TRACES_EXPORTER is "{kind}"; choose from {", ".join(EXPORTERS)}')
    require_extra("opentelemetry.exporter.otlp.proto.http", "--telemetry", "telemetry")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
