"""What watches the server: probes, metrics and their exact values, models, errors, request ids."""

from __future__ import annotations

from typing import Any, get_args

import httpx
import pytest
from openai import OpenAI
from openai.types import Model
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from scheduler.events import FinishReason
from scheduler.info import Health
from server.ops import STALE, Ops

from .support import CONTEXT, MODEL, Metrics, decisive, idle, poll, scrape

COUNTERS = (
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prefix_cache_evicted_tokens",
    "prompt_tokens",
    "prompt_computed_tokens",
    "generation_tokens",
    "preemptions",
    "client_disconnects",
)
GAUGES = (
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "engine_heartbeat_age_seconds",
    "engine_healthy",
)
HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "batch_rows",
)
LABELLED = {
    "requests_total": ("finish_reason", get_args(FinishReason)),
    "admission_rejections_total": ("reason", ("queue_full", "prompt_too_large", "draining")),
    "kv_cache_bytes": ("state", ("lent", "owned", "cached", "free")),
    "memory_bytes": ("kind", ("active", "weights")),
    "step_seconds_count": ("phase", ("prefill", "decode")),
}
TENANT_COUNTERS = (
    "prompt_tokens",
    "cached_tokens",
    "generation_tokens",
    "requests",
    "engine_seconds",
    "queue_seconds",
)
LENT = "commons_prefix_cache_lent_tokens"
ROUTE = "/v1/completions"


def test_every_metric_is_there_from_the_first_scrape(first_scrape: str) -> None:
    metrics = Metrics(first_scrape)
    for name in COUNTERS:
        assert metrics(f"{name}_total") == 0
    for name in TENANT_COUNTERS:
        assert metrics(f"tenant_{name}_total", tenant="default") == 0
    assert metrics("prefix_cache_lent_tokens_total", lender="default", borrower="default") == 0
    for name in HISTOGRAMS:
        assert metrics(f"{name}_count") == 0
    for name in GAUGES:
        assert metrics(name) >= 0
    for name, (label, values) in LABELLED.items():
        for value in values:
            assert metrics(name, **{label: value}) >= 0
    assert metrics("requests_total") == 0
    assert metrics("admission_rejections_total") == 0
    assert metrics("engine_healthy") == 1
    assert metrics("kv_cache_bytes", state="free") > 0
    assert metrics("memory_bytes", kind="weights") > 0


def test_own_series_are_labelled_and_documented(first_scrape: str) -> None:
    own = [f for f in Metrics(first_scrape).families.values() if f.name.startswith("commons_")]
    assert all(f.documentation for f in own)
    theirs = [f for f in own if f.name.startswith("commons_tenant_") or f.name == LENT]
    assert {s.labels.get("tenant", "default") for f in theirs for s in f.samples} == {"default"}
    for sample in (s for f in own if f not in theirs for s in f.samples):
        assert sample.labels["model"] == MODEL
        assert (sample.labels["adapter"], sample.labels["draft"]) == ("", "")


def test_exact_values_after_a_known_load(http: httpx.Client, oracle: Any) -> None:
    prompt, reply = decisive(oracle, 120, 6, 300)
    stop = reply.tokens.index(reply.tokens[4]) + 1  # tokens until that one is chosen
    before = poll(http, idle)
    cached = 0
    for more in ({}, {}, {"stop_token_ids": [reply.tokens[4]]}):
        request = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 6} | more
        usage = http.post(ROUTE, json=request | {"ignore_eos": True}).json()["usage"]
        cached += usage["prompt_tokens_details"]["cached_tokens"]
    after = poll(http, idle)

    def risen(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    generated = 6 + 6 + stop
    assert risen("requests_total", finish_reason="length") == 2
    assert risen("requests_total", finish_reason="stop") == 1
    assert risen("requests_total") == 3
    assert risen("prompt_tokens_total") == risen("prefix_cache_queries_total") == 360
    assert risen("prefix_cache_hits_total") == cached > 0
    assert risen("prompt_computed_tokens_total") == 360 - cached
    assert risen("generation_tokens_total") == generated
    for name in HISTOGRAMS[:1] + HISTOGRAMS[2:5]:
        assert risen(f"{name}_count") == 3
    assert risen("inter_token_latency_seconds_count") == generated - 3
    assert risen("batch_rows_count") == risen("batch_rows_sum") == generated
    assert risen("step_seconds_count", phase="decode") == generated
    assert risen("step_seconds_count", phase="prefill") >= 1
    assert risen("preemptions_total") == risen("client_disconnects_total") == 0


def test_cache_share_of_the_budget_adds_up(http: httpx.Client) -> None:
    metrics = poll(http, idle)
    states = {s: metrics("kv_cache_bytes", state=s) for s in ("lent", "owned", "cached", "free")}
    used = (states["lent"] + states["owned"] + states["cached"]) / sum(states.values())
    assert metrics("kv_cache_usage_ratio") == pytest.approx(used)


def test_openmetrics_where_asked(http: httpx.Client) -> None:
    kind = "application/openmetrics-text; version=1.0.0"
    response = http.get("/metrics", headers={"accept": kind})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    assert http.get("/metrics").headers["content-type"].startswith("text/plain")


def test_probes_enqueue_nothing(http: httpx.Client) -> None:
    before = poll(http, idle)("requests_total")
    for path, status in (("/livez", "ok"), ("/health", "ok"), ("/ready", "ready")):
        response = http.get(path)
        assert response.status_code == 200
        assert response.json()["status"] == status
        assert response.headers["cache-control"] == "no-store"
        assert http.head(path).status_code == 200
    assert scrape(http)("requests_total") == before


class Stub:
    """A service in a given state."""

    def __init__(self, state: Health) -> None:
        self.state = state

    def health(self) -> Health:
        return self.state


GOOD = Health(True, True, True, False, 0.1, None, 0, 0)
STATES = {
    "good": (GOOD, (200, "ok"), (200, "ready")),
    "loading": (GOOD._replace(loaded=False, ready=False), (200, "ok"), (503, "loading")),
    "draining": (GOOD._replace(ready=False, draining=True), (200, "ok"), (503, "draining")),
    "dead": (
        GOOD._replace(alive=False, loaded=False, ready=False, error="device lost"),
        (503, "engine failed"),
        (503, "failed"),
    ),
    "hung": (GOOD._replace(heartbeat_age=STALE + 1), (503, "engine hung"), (200, "ready")),
    "slow to load": (
        GOOD._replace(loaded=False, ready=False, heartbeat_age=STALE + 1),
        (200, "ok"),
        (503, "loading"),
    ),
}


@pytest.mark.parametrize(("state", "health", "ready"), STATES.values(), ids=STATES.keys())
def test_probes_tell_the_state(
    state: Health, health: tuple[int, str], ready: tuple[int, str]
) -> None:
    ops = Ops(Stub(state), CollectorRegistry())  # type: ignore[arg-type]
    client = TestClient(
        Starlette(
            routes=[
                Route("/livez", ops.livez),
                Route("/health", ops.health),
                Route("/ready", ops.ready),
            ]
        )
    )
    assert client.get("/livez").status_code == 200
    for path, expected in (("/health", health), ("/ready", ready)):
        response = client.get(path)
        assert (response.status_code, response.json()["status"]) == expected
        assert "device lost" not in response.text


def test_models(http: httpx.Client, client: OpenAI, tiny: str) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    Model.model_validate(model, strict=True)
    assert model["id"] == MODEL
    assert model["root"] == tiny
    assert model["parent"] is None
    assert model["max_model_len"] == CONTEXT
    assert model["attention"] in ("lent", "copied")
    assert http.get(f"/v1/models/{MODEL}").json() == model
    assert [m.id for m in client.models.list()] == [MODEL]
    error = http.get("/v1/models/some/other")
    assert error.status_code == 404
    assert error.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 405, "method_not_allowed"),
        ("GET", "/v1/responses", 405, "method_not_allowed"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("GET", "/%00%ff%0a", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ],
)
def test_wrong_routes_have_the_error_shape(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/v1/models"])
def test_request_id_is_the_clients_own(http: httpx.Client, path: str) -> None:
    assert http.get(path, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = [http.get(path).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for unsound in ("", "a b", "x" * 129, "\u00fc"):
        given = unsound.encode("latin-1")
        answer = http.get(path, headers={b"x-request-id": given}).headers["x-request-id"]
        assert answer.startswith("req_")
        assert answer != unsound
