"""Traces by OpenTelemetry's SDK, an optional extra: one span a request, exported in batches.

Attributes are those of the semantic conventions for HTTP and for generative AI. A batch leaves
on the SDK's own thread, so a collector that is slow or gone keeps nobody waiting.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from .request_log import Record, Tally, ends
from .settings_file import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span
    from starlette.types import Scope

PROVIDER = "mlx-commons"
TRACES = "/v1/traces"
EXPORT_TIMEOUT = 5.0  # seconds that a collector may take for a batch
NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
}


def parse_endpoint(url: str) -> str:
    """Where traces go: a collector's OTLP address over HTTP. Raises ConfigError.

    Also where the extra that it takes is not installed.
    """
    if not url.startswith(("http://", "https://")) or url.partition("://")[2].strip("/") == "":
        raise ConfigError(f"{url!r} is no http:// or https:// address")
    try:
        for module in NEEDED:
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "traces need OpenTelemetry, which is not installed: pip install 'mlx-commons[otel]'"
        ) from error
    return url if url.rstrip("/").endswith(TRACES) else url.rstrip("/") + TRACES


def otlp(endpoint: str) -> Tracing:
    """Traces that go to a collector."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT))


class Tracing:
    """Makes a span of every request; a client's ``traceparent`` is its parent."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        version = importlib.metadata.version("mlx-commons")
        service = {"service.name": PROVIDER, "service.version": version}
        # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say goes before it.
        resource = Resource.create(service).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(PROVIDER, version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: Record, scope: Scope) -> Span:
        """A span for a request that came."""
        from opentelemetry.trace import SpanKind

        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        span = self._tracer.start_span(
            record.method,
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=record.began_ns,
        )
        context = span.get_span_context()
        record.trace = (f"{context.trace_id:032x}", f"{context.span_id:016x}")
        return span

    def end(self, span: Span, record: Record) -> None:
        """The request has been answered."""
        from opentelemetry.trace import Status, StatusCode

        operation = OPERATIONS.get(record.path) if record.method == "POST" else None
        if operation is not None:
            span.update_name(f"{operation} {record.model}".rstrip())
        span.set_attributes(_attributes(record, operation))
        if (record.status or 0) >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(record.began_ns + int(record.seconds * 1e9))

    def close(self) -> None:
        """Sends what has not been sent yet; blocks."""
        self._provider.force_flush()


def _attributes(record: Record, operation: str | None) -> dict[str, Any]:
    """What is known of a request; what a client wrote is not among it."""
    status = record.status or 0
    known: dict[str, Any] = {
        "http.request.method": record.method,
        "http.response.status_code": status,
        "url.path": record.path,
        "error.type": (record.error_code or str(status)) if status >= 400 else None,
        "commons.request_id": record.id,
        "commons.tenant": record.tenant or None,
    }
    if operation is not None:
        known |= _generation(record, operation)
    return {name: value for name, value in known.items() if value is not None}


def _generation(record: Record, operation: str) -> dict[str, Any]:
    known: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": record.asked or None,
        "gen_ai.response.model": record.model or None,
    }
    return known if record.replies is None else known | _replies(record, record.replies.tally())


def _replies(record: Record, tally: Tally) -> dict[str, Any]:
    return {
        "gen_ai.response.id": tally.response_id,
        "gen_ai.response.finish_reasons": ends(record, tally),
        "gen_ai.response.time_to_first_chunk": record.ttft,
        "gen_ai.usage.input_tokens": tally.prompt,
        "gen_ai.usage.cache_read.input_tokens": tally.cached,
        "gen_ai.usage.output_tokens": tally.completion,
        "gen_ai.usage.reasoning.output_tokens": tally.reasoning or None,
    }
