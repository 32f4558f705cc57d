"""What only vLLM's names show: exact values after a known load of one server."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from scheduler.info import ServiceConfig
from scheduler.metrics import Gauges
from server.vllm_counts import VllmMetrics
from tests.adapters import make_adapter
from tests.models import COMMON, model_dir

from .process import PATIENCE, Server
from .support import MODEL, Metrics, idle, ids, poll, scrape

EAGER = (sys.executable, "-m", "tests.server.eager")
PER_TOKEN = 2 * 4 * COMMON["num_hidden_layers"] * COMMON["num_key_value_heads"] * COMMON["head_dim"]
ROOM = 2056  # tokens in the KV memory: 128 blocks of 16, and half a block
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
REPLY = 7


@pytest.fixture(scope="module")
def both(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two rows, two adapters and a draft whose proposals are all right."""
    folder = tmp_path_factory.mktemp("both")
    adapters = []
    for seed, name in enumerate(("style", "tone")):
        make_adapter(model_dir("qwen3"), folder / name, seed=seed, rank=4)
        adapters += ["--adapter", f"{name}={folder / name}"]
    options = ("--max-rows", "2", "--kv-memory", str(ROOM * PER_TOKEN))
    drafts = ("--draft-model", tiny, "--num-draft-tokens", "2")
    names = ("--metrics-compat", "vllm")
    with Server("--model", tiny, *options, *drafts, *names, *adapters, command=EAGER) as server:
        yield server.ready()


@pytest.fixture
def http(both: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=both.url, timeout=PATIENCE) as client:
        yield client


def there(metrics: Metrics, name: str, **labels: str) -> float:
    """The one sample of ``vllm:NAME`` for the model."""
    wanted = {"model_name": MODEL, "engine": "0"} | labels
    (value,) = [s.value for s in metrics.samples if s.name == f"vllm:{name}" and s.labels == wanted]
    return value


class Load:
    """What rose from one idle moment to another."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.before = self.after = poll(http, idle)

    def done(self) -> None:
        self.after = poll(self._http, idle)

    def __call__(self, name: str, **labels: str) -> float:
        return there(self.after, name, **labels) - there(self.before, name, **labels)

    def ours(self, name: str, **labels: str) -> float:
        return self.after(name, **labels) - self.before(name, **labels)


def ask(http: httpx.Client, prompt: list[int], **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": REPLY, "ignore_eos": True} | more
    answer = http.post("/v1/completions", json=body).raise_for_status()
    usage: dict[str, Any] = answer.json()["usage"]
    return usage


def info(metrics: Metrics, name: str) -> tuple[dict[str, str], float]:
    """The labels and the value of a metric that tells by its labels."""
    (sample,) = [s for s in metrics.samples if s.name == f"vllm:{name}"]
    return sample.labels, sample.value


def test_all_begin_at_zero(http: httpx.Client) -> None:
    metrics = scrape(http)
    for name in (
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_max_num_generation_tokens",
        "request_params_max_tokens",
        "request_params_n",
        "request_prefill_kv_computed_tokens",
        "iteration_tokens_total",
        "request_inference_time_seconds",
        "request_decode_time_seconds",
        "request_time_per_output_token_seconds",
    ):
        assert there(metrics, f"{name}_count") == there(metrics, f"{name}_sum") == 0
        assert there(metrics, f"{name}_bucket", le="+Inf") == 0
    assert [there(metrics, "prompt_tokens_by_source_total", source=s) for s in SOURCES] == [0, 0, 0]
    assert there(metrics, "spec_decode_num_drafts_total") == 0
    for reason in ("capacity", "deferred"):
        assert there(metrics, "num_requests_waiting_by_reason", reason=reason) == 0
    states = ("awake", "weights_offloaded", "discard_all")
    assert [there(metrics, "engine_sleep_state", sleep_state=s) for s in states] == [1, 0, 0]


def test_the_kv_memory_in_blocks(http: httpx.Client) -> None:
    labels, value = info(scrape(http), "cache_config_info")
    assert value == 1
    assert labels == {
        "model_name": MODEL,
        "engine": "0",
        "block_size": "16",
        "num_gpu_blocks": "128",
        "cache_dtype": "auto",
        "enable_prefix_caching": "True",
        "kv_cache_memory_bytes": str(ROOM * PER_TOKEN),
        "kv_cache_size_tokens": str(128 * 16),
    }


def test_requests_by_their_lengths(http: httpx.Client) -> None:
    load, prompt = Load(http), ids(100, 1)
    for _ in range(2):
        ask(http, prompt, draft_model=None)
    ask(http, ids(30, 2), draft_model=None, n=3, max_tokens=1)
    load.done()
    assert load("request_prompt_tokens_count") == 5
    assert load("request_prompt_tokens_sum") == 2 * 100 + 3 * 30
    assert load("request_prompt_tokens_bucket", le="50.0") == 3
    assert load("request_prompt_tokens_bucket", le="100.0") == 5
    for name in ("request_generation_tokens", "request_max_num_generation_tokens"):
        assert load(f"{name}_count") == 5
        assert load(f"{name}_sum") == 2 * REPLY + 3
        assert load(f"{name}_bucket", le="1.0") == 3
    assert load("request_params_max_tokens_sum") == 2 * REPLY + 3
    assert (load("request_params_n_count"), load("request_params_n_sum")) == (3, 1 + 1 + 3)
    cached = load.ours("prefix_cache_hits_total")
    assert cached == load("prompt_tokens_cached_total") >= 99
    computed = 2 * 100 + 3 * 30 - cached
    assert load("request_prefill_kv_computed_tokens_sum") == computed
    assert [load("prompt_tokens_by_source_total", source=s) for s in SOURCES] == [
        computed,
        cached,
        0,
    ]
    assert load("spec_decode_num_drafts_total") == 0


def test_tokens_and_times_of_steps(http: httpx.Client) -> None:
    load = Load(http)
    for adapter in (None, "style"):
        ask(http, ids(64, 3), adapter=adapter, draft_model=None)
    load.done()
    steps = sum(load.ours("step_seconds_count", phase=p) for p in ("prefill", "decode"))
    assert load("iteration_tokens_total_count") == steps
    assert load("iteration_tokens_total_sum") == 2 * (64 + REPLY)
    # A prompt's last token enters with the step that gives the first token of the reply.
    assert load("iteration_tokens_total_bucket", le="1.0") == 2 * (REPLY - 1)
    assert load("iteration_tokens_total_bucket", le="8.0") == 2 * REPLY
    decoding = load.ours("inter_token_latency_seconds_sum")
    assert load("request_decode_time_seconds_sum") == pytest.approx(decoding)
    per_token = load("request_time_per_output_token_seconds_sum")
    assert per_token == pytest.approx(decoding / (REPLY - 1))
    running = load("request_inference_time_seconds_sum")
    assert running == pytest.approx(decoding + load.ours("request_prefill_time_seconds_sum"))
    for name in ("decode_time", "inference_time", "time_per_output_token"):
        assert load(f"request_{name}_seconds_count") == 2


def test_proposals_by_place(http: httpx.Client) -> None:
    load = Load(http)
    ask(http, ids(40, 4), temperature=0)
    load.done()
    # Three tokens in each of two steps, and the last one without a proposal.
    assert load.ours("step_seconds_count", phase="decode") == 3
    assert load("spec_decode_num_drafts_total") == 2
    assert load.ours("draft_tokens_total") == load.ours("draft_accepted_tokens_total") == 4
    name = "spec_decode_num_accepted_tokens_per_pos_total"
    assert [there(load.after, name, position=p) for p in "01"] == [2, 2]
    assert load("iteration_tokens_total_sum") == 40 + REPLY


def test_responses_by_status(http: httpx.Client) -> None:
    def count(metrics: Metrics, status: str) -> float:
        wanted = {"method": "POST", "handler": "/v1/completions", "status": status}
        name = "http_requests_total"
        (value,) = [s.value for s in metrics.samples if (s.name, s.labels) == (name, wanted)]
        return value

    before = scrape(http)
    ask(http, ids(9, 6), max_tokens=1)
    for bad in ({"max_tokens": 0}, {"model": "absent"}):
        http.post("/v1/completions", json={"model": MODEL, "prompt": [5]} | bad)
    http.get("/health").raise_for_status()
    after = poll(http, idle)
    assert [count(after, s) - count(before, s) for s in ("2xx", "4xx", "5xx")] == [1, 2, 0]


def test_adapters_that_run_and_wait(http: httpx.Client) -> None:
    labels, before = info(poll(http, idle), "lora_requests_info")
    assert labels == {
        "max_lora": "64",
        "running_lora_adapters": "",
        "waiting_lora_adapters": "",
    }
    assert abs(before - time.time()) < PATIENCE
    body = {"prompt": ids(5, 5), "ignore_eos": True, "draft_model": None}
    long = body | {"model": "tone", "max_tokens": 700, "n": 2, "stream": True}
    short = body | {"model": "style", "max_tokens": 1, "n": 2}
    with ThreadPoolExecutor(1) as pool:
        with http.stream("POST", "/v1/completions", json=long) as first:
            lines = first.iter_lines()  # which keeps the reply coming
            next(lines)
            second = pool.submit(http.post, "/v1/completions", json=short)
            full = poll(http, lambda m: m("requests_waiting") == 2)
            labels, value = info(full, "lora_requests_info")
        second.result().raise_for_status()
    assert labels["running_lora_adapters"] == "tone"
    assert labels["waiting_lora_adapters"] == "style"
    assert value > before
    assert there(full, "num_requests_waiting_by_reason", reason="capacity") == 2
    assert there(full, "num_requests_waiting_by_reason", reason="deferred") == 0
    metrics = poll(http, idle)
    assert info(metrics, "lora_requests_info")[0]["running_lora_adapters"] == ""


def test_a_model_that_is_not_loaded() -> None:
    registry = CollectorRegistry()
    model = VllmMetrics(registry, ServiceConfig("m", "m")).model("m")
    model.observe(Gauges(waiting=3, deferred=3, kv_limit=1 << 20), heartbeat_age=0.0, healthy=True)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model_name": "m", "engine": "0", **labels})

    assert value("vllm:num_requests_waiting_by_reason", reason="deferred") == 3
    assert value("vllm:num_requests_waiting_by_reason", reason="capacity") == 0
    assert value("vllm:engine_sleep_state", sleep_state="awake") == 0
    assert value("vllm:engine_sleep_state", sleep_state="discard_all") == 1
    (config,) = [f for f in registry.collect() if f.name == "vllm:cache_config_info"]
    assert not config.samples
