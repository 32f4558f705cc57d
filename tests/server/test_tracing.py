"""Traces: what a span says of a request, who its parent is, and that a collector gets it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from server.app import create_app
from server.settings_file import ConfigError
from server.tracing import Tracing, parse_endpoint

from .process import PATIENCE, Server, commons
from .scripted import GOOD, Scripted, wired

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a secret"}]}


class Traced:
    """The application, with its spans kept in memory."""

    def __init__(self) -> None:
        self.service = Scripted()
        self.service.says = "Hello."
        self._kept = InMemorySpanExporter()
        self._tracing = Tracing(self._kept)
        self.app = create_app(
            self.service,
            self.service.metrics.registry,
            self.service.access,
            default_max_tokens=100,
            tracer=self._tracing,
        )

    def spans(self) -> list[ReadableSpan]:
        self._tracing.close()
        return list(self._kept.get_finished_spans())


@pytest.fixture
def traced() -> Traced:
    return Traced()


@pytest.fixture
async def http(traced: Traced) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(traced.app, raises=False) as client:
        yield client


@pytest.mark.parametrize("streams", [False, True])
async def test_a_span_tells_of_its_request(
    http: httpx.AsyncClient, traced: Traced, streams: bool
) -> None:
    headers = {"traceparent": TRACEPARENT, "x-request-id": "mine"}
    response = await http.post(CHAT, json=BODY | {"stream": streams}, headers=headers)
    assert response.status_code == 200
    (span,) = traced.spans()
    assert (span.name, span.kind) == ("chat m", SpanKind.SERVER)
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    said = dict(span.attributes or {})
    (request,) = traced.service.requests
    tokens = len(traced.service.tokenizer.encode("Hello.")) + 1
    assert said.pop("gen_ai.response.id") in response.text
    assert isinstance(first := said.pop("gen_ai.response.time_to_first_chunk"), float)
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < first <= (span.end_time - span.start_time) / 1e9
    assert said == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": CHAT,
        "commons.request_id": "mine",
        "commons.tenant": "default",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx-commons",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": len(request.prompt),
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": tokens,
    }
    assert span.status.status_code == StatusCode.UNSET


async def test_a_refusal_is_the_clients_and_a_fault_the_servers(
    http: httpx.AsyncClient, traced: Traced
) -> None:
    await http.post(CHAT, json=BODY | {"model": "other"})
    traced.service.state = GOOD._replace(ready=False, draining=True)
    await http.post(CHAT, json=BODY)
    refused, failed = traced.spans()
    assert refused.attributes is not None
    assert failed.attributes is not None
    assert refused.attributes["error.type"] == "model_not_found"
    assert refused.name == "chat"
    assert failed.attributes["error.type"] == "not_ready"
    codes = [span.status.status_code for span in (refused, failed)]
    assert codes == [StatusCode.UNSET, StatusCode.ERROR]


@pytest.mark.parametrize("parent", ["", "00-zz-1-01", "x" * 10_000, f"00-{'0' * 32}-{PARENT}-01"])
async def test_an_unsound_traceparent_begins_a_trace(
    http: httpx.AsyncClient, traced: Traced, parent: str
) -> None:
    assert (await http.get("/v1/models", headers={"traceparent": parent})).status_code == 200
    (span,) = traced.spans()
    assert span.parent is None
    assert (span.name, dict(span.attributes or {})["url.path"]) == ("GET", "/v1/models")


async def test_an_unsampled_trace_is_not_exported(http: httpx.AsyncClient, traced: Traced) -> None:
    await http.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    await http.get("/v1/models")
    assert len(traced.spans()) == 1


async def test_watching_makes_no_spans(http: httpx.AsyncClient, traced: Traced) -> None:
    for path in ("/livez", "/health", "/ready", "/metrics"):
        await http.get(path)
    assert not traced.spans()


async def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=lab")
    traced = Traced()
    async with wired(traced.app) as http:
        await http.get("/v1/models")
    (span,) = traced.spans()
    resource = span.resource.attributes
    assert (resource["service.name"], resource["deployment.environment"]) == ("ours", "lab")


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://host/otlp", "https://host/otlp/v1/traces"),
        ("https://host/v1/traces", "https://host/v1/traces"),
    ],
)
def test_an_endpoint_gets_the_path_of_traces(url: str, endpoint: str) -> None:
    assert parse_endpoint(url) == endpoint


@pytest.mark.parametrize("url", ["localhost:4318", "", "http://", "grpc://host"])
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    ended = commons("serve", "--otel-endpoint", url, env={"NO_COLOR": "1", "COLUMNS": "200"})
    assert ended.returncode == 2
    assert "--otel-endpoint" in ended.stderr


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"pip install 'mlx-commons\[otel\]'"):
        parse_endpoint("http://host:4318")


class Collector(BaseHTTPRequestHandler):
    """A receiver of OTLP over HTTP."""

    got: Queue[ExportTraceServiceRequest] = Queue()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        self.got.put(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_collector_gets_the_spans_of_a_server_that_ends(collector: str) -> None:
    with Server("--otel-endpoint", collector, "--log-json") as server:
        server.ready()
        body = BODY | {"model": "commons-tiny", "max_tokens": 2}
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
            http.post(CHAT, json=body, headers={"traceparent": TRACEPARENT}).raise_for_status()
        server.process.terminate()
        assert server.wait() == 0
    (resource,) = Collector.got.get(timeout=PATIENCE).resource_spans
    (scope,) = resource.scope_spans
    (span,) = scope.spans
    assert (span.name, span.trace_id.hex()) == ("chat commons-tiny", TRACE)
    assert b"a secret" not in span.SerializeToString()
    assert any(f'"span_id": "{span.span_id.hex()}"' in line for line in server.lines)


def test_a_collector_that_is_gone_stops_nobody() -> None:
    with Server("--otel-endpoint", "http://127.0.0.1:9") as server:
        server.ready()
        httpx.get(f"{server.url}/v1/models", timeout=PATIENCE).raise_for_status()
        server.process.terminate()
        assert server.wait() == 0
