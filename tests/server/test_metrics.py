"""Metrics of a server with tenants: exact values after a known load, under both kinds of names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapters import make_adapter
from tests.models import COMMON, model_dir
from tests.oracle import Oracle

from .access import write_keys
from .limited import OPERATOR, as_tenant
from .process import PATIENCE, Server
from .several import weights
from .support import MODEL, Metrics, decisive, idle, ids, poll, scrape

ROUTE = "/v1/completions"
EAGER = (sys.executable, "-m", "tests.server.eager")
PER_TOKEN = 2 * 4 * COMMON["num_hidden_layers"] * COMMON["num_key_value_heads"] * COMMON["head_dim"]
ROOM = 1024  # tokens in the KV memory
TENANTS = ("a", "b", "few")
LIMITS = "requests_per_minute = 2\ntokens_per_minute = 1000\nconcurrent = 4\nqueued = 2"
STATES = ("lent", "owned", "cached", "free")


@pytest.fixture(scope="module")
def metered(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two rows, little memory, a weighty tenant and one with limits."""
    folder = tmp_path_factory.mktemp("metered")
    make_adapter(model_dir("qwen3"), folder / "style", seed=1, rank=4)
    config = folder / "commons.toml"
    config.write_text(
        f'model = "{tiny}"\nadapter-dir = "{folder}"\nkv-memory = "{ROOM * PER_TOKEN}"\n'
        'max-rows = 2\nmetrics-compat = "vllm"\n'
        f"[tenants.a]\nweight = 3\n[tenants.b]\n[tenants.few]\n{LIMITS}\n"
    )
    write_keys(config, *TENANTS, "admin")
    with Server("--config", str(config)) as server:
        yield server.ready()


@pytest.fixture
def http(metered: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=metered.url, timeout=PATIENCE, headers=OPERATOR) as client:
        yield client


class Load:
    """Two scrapes, and what rose between them."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.before = self.after = poll(http, idle)

    def done(self) -> None:
        poll(self._http, idle)
        self.after = scrape(self._http)  # a second time: looking must change nothing

    def __call__(self, name: str, **labels: str) -> float:
        return self.after(name, **labels) - self.before(name, **labels)


def ask(http: httpx.Client, tenant: str, prompt: list[int], **more: Any) -> dict[str, Any]:
    """The usage of a reply of four tokens."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "ignore_eos": True} | more
    answer = http.post(ROUTE, json=body, headers=as_tenant(tenant)).raise_for_status().json()
    usage: dict[str, Any] = answer["usage"]
    return usage


def cached(usage: dict[str, Any]) -> int:
    found: int = usage["prompt_tokens_details"]["cached_tokens"]
    return found


def vllm(metrics: Metrics, name: str, **labels: str) -> float:
    """The one sample of ``vllm:NAME`` for the model."""
    wanted = {"model_name": MODEL, "engine": "0"} | labels
    (value,) = [s.value for s in metrics.samples if s.name == f"vllm:{name}" and s.labels == wanted]
    return value


def test_every_series_of_a_tenant_begins_at_zero(http: httpx.Client) -> None:
    metrics = scrape(http)
    for tenant in TENANTS:
        assert metrics("tenant_weight", tenant=tenant) == (3 if tenant == "a" else 1)
        assert metrics("tenant_requests_running", tenant=tenant) == 0
        assert metrics("tenant_requests_waiting", tenant=tenant) == 0
        for limit in ("requests", "tokens", "concurrent", "queued"):
            of = {"tenant": tenant, "limit": limit}
            assert metrics("tenant_limit_used_ratio", **of) == 0
            assert metrics("tenant_limit_refusals_total", **of) == 0
        for lender in (*TENANTS, "public"):
            of = {"lender": lender, "borrower": tenant}
            assert metrics("prefix_cache_lent_tokens_total", **of) == 0
    assert metrics("admission_rejections_total", reason="other") == 0


def test_lent_tokens_and_kv_bytes(http: httpx.Client) -> None:
    load, prompt = Load(http), ids(100, 1)
    own = ask(http, "a", prompt), ask(http, "a", prompt)
    others = ask(http, "b", prompt), ask(http, "b", ids(50, 2))
    load.done()
    assert [cached(u) for u in (*own, *others)] == [0, 99, 99, 0]
    lent = {
        (lender, borrower): load("prefix_cache_lent_tokens_total", lender=lender, borrower=borrower)
        for lender in (*TENANTS, "public")
        for borrower in TENANTS
    }
    assert {pair: n for pair, n in lent.items() if n} == {("a", "a"): 99, ("a", "b"): 99}
    assert load("prefix_cache_hits_total") == 198
    assert load("prefix_cache_queries_total") == load("prompt_tokens_total") == 350
    assert load("prompt_computed_tokens_total") == 350 - 198
    assert load("tenant_cached_tokens_total", tenant="b") == 99
    # Everything that was computed is kept once: prompts, and of replies all but the last token.
    replies = 4 * 3
    kept = 100 + 50 + replies
    assert load("kv_cache_bytes", state="cached") <= kept * PER_TOKEN
    assert load("kv_cache_bytes", state="cached") >= (kept - replies) * PER_TOKEN
    states = {s: load.after("kv_cache_bytes", state=s) for s in STATES}
    assert states["lent"] == states["owned"] == 0
    assert sum(states.values()) == ROOM * PER_TOKEN
    assert load.after("kv_cache_usage_ratio") == states["cached"] / (ROOM * PER_TOKEN)


def test_memory_and_the_engines_health(http: httpx.Client, tiny: str) -> None:
    metrics = poll(http, idle)
    file = weights(Path(tiny))
    held = metrics("memory_bytes", kind="weights")
    assert 0 <= file - held < 0.1 * file  # the file has a header, too
    assert metrics("memory_bytes", kind="active") >= held
    assert metrics("engine_healthy") == 1
    assert 0 <= metrics("engine_heartbeat_age_seconds") < PATIENCE
    assert metrics("model_loaded") == 1


def test_evicted_tokens(http: httpx.Client) -> None:
    load = Load(http)
    for seed in range(10, 14):
        assert cached(ask(http, "b", ids(400, seed), max_tokens=1)) == 0
    load.done()
    risen = load("kv_cache_bytes", state="cached") / PER_TOKEN
    assert load("prefix_cache_evicted_tokens_total") == 4 * 400 - risen > 0


def test_rows_that_run_and_requests_that_wait(http: httpx.Client, metered: Server) -> None:
    load = Load(http)
    body = {"model": MODEL, "prompt": ids(5, 3), "max_tokens": 300, "ignore_eos": True, "n": 3}
    with http.stream("POST", ROUTE, json=body | {"stream": True}, headers=as_tenant("b")) as reply:
        lines = reply.iter_lines()
        next(lines)
        full = poll(http, lambda m: m("requests_running") == 2 and m("requests_waiting") == 1)
        assert full("tenant_requests_running", tenant="b") == 2
        assert full("tenant_requests_waiting", tenant="b") == 1
        assert vllm(full, "num_requests_running") == 2
        assert vllm(full, "num_requests_waiting") == 1
        for _ in lines:
            pass
    load.done()
    assert load("requests_total", finish_reason="length") == load("requests_total") == 3
    assert load("generation_tokens_total") == load("batch_rows_sum") == 900
    steps = load("step_seconds_count", phase="decode")
    assert load("batch_rows_count") == steps
    assert load("batch_rows_bucket", le="1.0") + load("batch_rows_bucket", le="2.0") >= steps
    assert load("batch_rows_bucket", le="2.0") == steps >= 450
    assert load("inter_token_latency_seconds_count") == 900 - 3
    for name in ("time_to_first_token", "request_queue_time", "request_prefill_time"):
        assert load(f"{name}_seconds_count") == 3
    # The third waited while the others decoded, and is the last to end.
    waited = load("request_queue_time_seconds_sum")
    assert waited == pytest.approx(load("tenant_queue_seconds_total", tenant="b"))
    assert load("e2e_request_latency_seconds_sum") > load("time_to_first_token_seconds_sum")
    assert load("time_to_first_token_seconds_sum") == pytest.approx(
        waited + load("request_prefill_time_seconds_sum")
    )
    assert load("tenant_engine_seconds_total", tenant="b") == pytest.approx(
        load("step_seconds_sum"), rel=0.01
    )


def test_a_preempted_request_counts_once(http: httpx.Client) -> None:
    load = Load(http)
    prompt = ids(300, 30)
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 450, "ignore_eos": True, "n": 2}
    answer = http.post(ROUTE, json=body, headers=as_tenant("a")).raise_for_status().json()
    load.done()
    assert load("preemptions_total") >= 1  # both together do not fit, either of them does
    assert vllm(load.after, "num_preemptions_total") == load.after("preemptions_total")
    assert load("requests_total", finish_reason="length") == load("requests_total") == 2
    assert load("prompt_tokens_total") == load("prefix_cache_queries_total") == 2 * 300
    assert load("generation_tokens_total") == answer["usage"]["completion_tokens"]
    for name in ("request_queue_time", "time_to_first_token", "e2e_request_latency"):
        assert load(f"{name}_seconds_count") == 2


def test_limits_used_and_refusals(http: httpx.Client) -> None:
    load = Load(http)
    for seed in (20, 21):
        ask(http, "few", ids(96, seed))
    body = {"model": MODEL, "prompt": [5], "max_tokens": 1}
    assert http.post(ROUTE, json=body, headers=as_tenant("few")).status_code == 429
    load.done()
    assert load("tenant_limit_refusals_total", tenant="few", limit="requests") == 1
    assert load("tenant_limit_refusals_total") == 1
    assert load("admission_rejections_total", reason="tenant_requests") == 1
    assert load("admission_rejections_total") == 1
    # A minute fills both up again.
    assert 0.5 < load.after("tenant_limit_used_ratio", tenant="few", limit="requests") <= 1
    assert 0 < load.after("tenant_limit_used_ratio", tenant="few", limit="tokens") <= 0.2
    assert load.after("tenant_limit_used_ratio", tenant="few", limit="concurrent") == 0
    assert load.after("tenant_limit_used_ratio", tenant="a") == 0


def test_other_rejections(http: httpx.Client) -> None:
    load = Load(http)
    body = {"model": MODEL, "prompt": ids(ROOM + 10, 4), "max_tokens": 1}
    assert http.post(ROUTE, json=body, headers=as_tenant("a")).status_code == 400
    load.done()
    assert load("admission_rejections_total", reason="prompt_too_large") == 1
    assert load("admission_rejections_total") == 1


def test_series_of_an_adapter_end_with_it_and_begin_anew(http: httpx.Client) -> None:
    def series(metrics: Metrics) -> int:
        return sum(s.labels.get("adapter") == "style" for s in metrics.samples)

    before = len(scrape(http).samples)
    for _ in range(2):
        http.post("/admin/adapters", json={"name": "style", "path": "style"}).raise_for_status()
        metrics = scrape(http)
        assert metrics("requests_total", adapter="style") == 0
        ask(http, "a", ids(9, 5), model="style")
        metrics = poll(http, idle)
        assert metrics("requests_total", adapter="style", finish_reason="length") == 1
        assert metrics("generation_tokens_total", adapter="style") == 4
        http.delete("/admin/adapters/style").raise_for_status()
        metrics = scrape(http)
        assert series(metrics) == 0
    assert len(metrics.samples) == before


def test_what_requests_say_makes_no_series(http: httpx.Client) -> None:
    before = {(s.name, *sorted(s.labels.items())) for s in poll(http, idle).samples}
    bodies = ({"model": "other"}, {"adapter": "other"}, {"draft_model": "other"}, {"user": "other"})
    for more in bodies:
        body = {"model": MODEL, "prompt": [5], "max_tokens": 1} | more
        http.post(ROUTE, json=body, headers=as_tenant("a"))
        http.post(ROUTE, json=body, headers=as_tenant("other"))
    after = {(s.name, *sorted(s.labels.items())) for s in poll(http, idle).samples}
    assert after == before


SAME = {
    "kv_cache_usage_perc": "kv_cache_usage_ratio",
    "gpu_cache_usage_perc": "kv_cache_usage_ratio",
    "prompt_tokens_total": "prompt_tokens_total",
    "generation_tokens_total": "generation_tokens_total",
    "prefix_cache_queries_total": "prefix_cache_queries_total",
    "prefix_cache_hits_total": "prefix_cache_hits_total",
    "gpu_prefix_cache_hits_total": "prefix_cache_hits_total",
    "num_preemptions_total": "preemptions_total",
    "http_requests_client_disconnected_total": "client_disconnects_total",
    "spec_decode_num_draft_tokens_total": "draft_tokens_total",
    "spec_decode_num_accepted_tokens_total": "draft_accepted_tokens_total",
    "time_to_first_token_seconds_sum": "time_to_first_token_seconds_sum",
    "inter_token_latency_seconds_count": "inter_token_latency_seconds_count",
    "time_per_output_token_seconds_count": "inter_token_latency_seconds_count",
    "e2e_request_latency_seconds_count": "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_sum": "request_queue_time_seconds_sum",
    "request_prefill_time_seconds_sum": "request_prefill_time_seconds_sum",
}


def test_vllm_names_have_the_same_values_summed_over_adapters(http: httpx.Client) -> None:
    http.post("/admin/adapters", json={"name": "style", "path": "style"}).raise_for_status()
    ask(http, "a", ids(9, 6))
    ask(http, "a", ids(9, 6), model="style")
    metrics = poll(http, idle)
    for theirs, ours in SAME.items():
        assert vllm(metrics, theirs) == pytest.approx(metrics(ours)), theirs
    for reason in ("stop", "length", "abort", "error"):
        there = vllm(metrics, "request_success_total", finished_reason=reason)
        assert there == metrics("requests_total", finish_reason=reason)
    assert metrics("requests_total", adapter="style", finish_reason="length") == 1
    for le in ("0.05", "1.0", "+Inf"):
        there = vllm(metrics, "e2e_request_latency_seconds_bucket", le=le)
        assert there == metrics("e2e_request_latency_seconds_bucket", le=le)
    rejected = vllm(metrics, "admission_rejections_total", reason="prompt_too_large")
    assert rejected == metrics("admission_rejections_total", reason="prompt_too_large")
    kind = "application/openmetrics-text; version=1.0.0"
    text = http.get("/metrics", headers={"accept": kind}).text
    assert "\nvllm:num_requests_running{" in text
    families = [f for f in metrics.families.values() if f.name.startswith("vllm:")]
    assert all(f.documentation and f.type != "unknown" for f in families)


def test_tokens_proposed_and_right(tiny: str, oracle: Oracle) -> None:
    """With a model that drafts for itself, whose proposals are all right."""
    prompt, reply = decisive(oracle, 40, 24, 3)
    options = ("--model", tiny, "--draft-model", tiny, "--num-draft-tokens", "3")
    with (
        Server(*options, command=EAGER) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as http,
    ):
        load = Load(http)
        ask(http, "nobody", prompt, max_tokens=len(reply.tokens), temperature=0)
        load.done()
        right = load("draft_accepted_tokens_total", draft=MODEL)
        assert right == load("draft_tokens_total", draft=MODEL) > 0
        assert load("draft_tokens_total", draft="") == 0
        assert load("generation_tokens_total", draft=MODEL) == len(reply.tokens)
        # A step gives a token of its own and those that were right.
        assert load("step_seconds_count", phase="decode") + right == len(reply.tokens)


def test_without_the_option_there_are_no_other_names(first_scrape: str) -> None:
    assert "vllm:" not in first_scrape
