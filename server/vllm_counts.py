"""What only servers with vLLM's names count: requests by their lengths, steps by their tokens.

It is fed like the contract's metrics, and only with ``--metrics-compat vllm``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler.info import ServiceConfig
from scheduler.metrics import FAST, SLOW, Gauges, Metrics, ModelMetrics, RequestSeries
from scheduler.stats import Course, Phase

from .vllm_metrics import ENGINE

TOKENS = tuple(m * 10**power for power in range(6) for m in (1, 2, 5))
STEP_TOKENS = (1, *(1 << power for power in range(3, 15)))
COPIES = (1, 2, 5, 10, 20)
BLOCK = 16  # tokens; prefixes are lent by the token, so any number would be true
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
REASONS = ("capacity", "deferred")
AWAKE, OFFLOADED, DISCARDED = SLEEP = ("awake", "weights_offloaded", "discard_all")
CACHE_CONFIG = (
    "model_name",
    "engine",
    "block_size",
    "num_gpu_blocks",
    "cache_dtype",
    "enable_prefix_caching",
    "kv_cache_memory_bytes",
    "kv_cache_size_tokens",
)
LORA = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")


class _Definitions:
    """The metrics, each with the labels ``model_name`` and ``engine``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("model_name", "engine")

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"vllm:{name}", text, (*labels, *more), registry=registry)

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, (*labels, *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, labels, buckets=buckets, registry=registry)

        self.prompt = histogram("request_prompt_tokens", "Prompt tokens of a request", TOKENS)
        self.generated = histogram("request_generation_tokens", "Tokens of a reply", TOKENS)
        # There the longest of a request's replies; here each of them is a request.
        self.longest = histogram("request_max_num_generation_tokens", "Tokens of a reply", TOKENS)
        self.most = histogram("request_params_max_tokens", "Tokens that a reply may have", TOKENS)
        self.copies = histogram("request_params_n", "Replies asked for to a prompt", COPIES)
        self.computed = histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens that were not cached", TOKENS
        )
        self.step = histogram("iteration_tokens_total", "Tokens of a forward pass", STEP_TOKENS)
        self.running = histogram("request_inference_time_seconds", "Row to last token", SLOW)
        self.decoding = histogram("request_decode_time_seconds", "First to last token", SLOW)
        self.pace = histogram(
            "request_time_per_output_token_seconds", "A reply's mean gap between tokens", FAST
        )
        self.sources = counter("prompt_tokens_by_source", "Prompt tokens, by whence", "source")
        self.drafts = counter("spec_decode_num_drafts", "Times that tokens were proposed")
        self.positions = counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Proposed tokens that were right, by their place in the proposal",
            "position",
        )
        self.waiting = gauge(
            "num_requests_waiting_by_reason",
            "Requests that wait for a row or memory, and for a load or another one's prefix",
            "reason",
        )
        self.sleep = gauge("engine_sleep_state", "1 for whether the model is loaded", "sleep_state")


class _Counts:
    """The series of one model, which all its adapters and drafts share; they begin at 0."""

    def __init__(self, of: _Definitions, model: str) -> None:
        labels = self._labels = {"model_name": model, "engine": ENGINE}
        self.prompt, self.generated = of.prompt.labels(**labels), of.generated.labels(**labels)
        self.longest, self.most = of.longest.labels(**labels), of.most.labels(**labels)
        self.copies, self.computed = of.copies.labels(**labels), of.computed.labels(**labels)
        self.step, self.pace = of.step.labels(**labels), of.pace.labels(**labels)
        self.running, self.decoding = of.running.labels(**labels), of.decoding.labels(**labels)
        self.sources = {s: of.sources.labels(**labels, source=s) for s in SOURCES}
        self.drafts = of.drafts.labels(**labels)
        self.positions: list[Counter] = []
        self.waiting = {r: of.waiting.labels(**labels, reason=r) for r in REASONS}
        self.sleep = {s: of.sleep.labels(**labels, sleep_state=s) for s in SLEEP}
        self.tokens = 0  # of the forward pass that is being counted
        self._of = of

    def position(self, number: int) -> Counter:
        """The series of a place in a proposal; a proposal's length is bounded by the settings."""
        while len(self.positions) <= number:
            place = str(len(self.positions))
            self.positions.append(self._of.positions.labels(**self._labels, position=place))
        return self.positions[number]


class _Series(RequestSeries):
    """Counts requests under both names; on the engine thread, like its base."""

    counts: _Counts

    def admitted(self, queued: float, prompt_tokens: int, cached_tokens: int) -> None:
        """Counts where the prompt's tokens came from."""
        super().admitted(queued, prompt_tokens, cached_tokens)
        self.counts.sources["local_compute"].inc(prompt_tokens - cached_tokens)
        self.counts.sources["local_cache_hit"].inc(cached_tokens)

    def computed(self, tokens: int) -> None:
        """Counts prompt tokens of this pass."""
        super().computed(tokens)
        self.counts.tokens += tokens

    def first_token(self, since_accepted: float, since_admitted: float) -> None:
        """Counts a token of this pass."""
        super().first_token(since_accepted, since_admitted)
        self.counts.tokens += 1

    def next_token(self, gap: float) -> None:
        """Counts a token of this pass."""
        super().next_token(gap)
        self.counts.tokens += 1

    def drafted(self, proposed: int, accepted: int) -> None:
        """Counts a proposal, and which of its places were right."""
        super().drafted(proposed, accepted)
        self.counts.drafts.inc()
        self.counts.position(proposed - 1)  # from 0 on
        for place in range(accepted):
            self.counts.position(place).inc()

    def ended(self, course: Course) -> None:
        """Observes a request that had a row."""
        counts = self.counts
        counts.prompt.observe(course.prompt_tokens)
        counts.computed.observe(course.computed_tokens)
        counts.generated.observe(course.generated_tokens)
        counts.longest.observe(course.generated_tokens)
        counts.most.observe(course.max_tokens)
        counts.running.observe(course.running)
        counts.decoding.observe(course.decoding)
        gaps = course.generated_tokens - 1
        counts.pace.observe(course.decoding / gaps if gaps > 0 else 0.0)


class VllmModelMetrics(ModelMetrics):
    """One model's metrics under both names; ``gauges`` is the last picture of it."""

    def __init__(self, metrics: VllmMetrics, model: str) -> None:
        self._counts = _Counts(metrics.there, model)
        self.gauges = Gauges()
        super().__init__(metrics.here, model)

    def _new_series(self, labels: dict[str, str]) -> RequestSeries:
        series = _Series(self._of, labels)
        series.counts = self._counts
        return series

    def step(self, phase: Phase, seconds: float, rows: int) -> None:
        """Observes a forward pass, and the tokens that have been counted since the last one."""
        super().step(phase, seconds, rows)
        self._counts.step.observe(self._counts.tokens)
        self._counts.tokens = 0

    def asked(self, copies: int) -> None:
        """Observes how many replies a prompt is to get."""
        self._counts.copies.observe(copies)

    def observe(self, gauges: Gauges, *, heartbeat_age: float, healthy: bool) -> None:
        """Sets all gauges; called before a scrape is rendered."""
        super().observe(gauges, heartbeat_age=heartbeat_age, healthy=healthy)
        self.gauges = gauges
        self._counts.waiting["capacity"].set(gauges.waiting - gauges.deferred)
        self._counts.waiting["deferred"].set(gauges.deferred)
        self._counts.sleep[AWAKE].set(gauges.loaded)
        self._counts.sleep[DISCARDED].set(1 - gauges.loaded)


class VllmMetrics(Metrics, Collector):
    """The series of all models of one server, under both names."""

    def __init__(self, registry: CollectorRegistry, config: ServiceConfig) -> None:
        super().__init__(registry)
        self.there = _Definitions(registry)
        self._config = config
        self._models: dict[str, VllmModelMetrics] = {}
        registry.register(self)

    def model(self, name: str) -> VllmModelMetrics:
        """The series of a configured model; to be called once for each."""
        made = self._models[name] = VllmModelMetrics(self, name)
        return made

    def collect(self) -> Iterable[Metric]:
        """What is told in labels, of the last picture."""
        yield self._cache_config()
        yield self._lora()

    def _cache_config(self) -> Metric:
        """Of the loaded models; those with KV by token. All of them share the one memory."""
        text = "The KV memory in blocks, as vLLM has them"
        info = GaugeMetricFamily("vllm:cache_config_info", text, labels=CACHE_CONFIG)
        for name, model in self._models.items():
            limit, size = model.gauges.kv_limit, model.gauges.token_bytes
            if size:
                blocks = limit // (BLOCK * size)
                caching = str(self._config.prefix_cache)
                values = (name, ENGINE, BLOCK, blocks, "auto", caching, limit, blocks * BLOCK)
                info.add_metric([str(value) for value in values], 1)
        return info

    def _lora(self) -> Metric:
        """Whose value is its time: routers take the newest."""
        text = "Adapters of requests with a row, and of those that wait"
        info = GaugeMetricFamily("vllm:lora_requests_info", text, labels=LORA)
        pictures = [model.gauges for model in self._models.values()]
        running = sorted({name for g in pictures for name in g.running_adapters})
        waiting = sorted({name for g in pictures for name in g.waiting_adapters})
        slots = str(self._config.adapter_slots)
        info.add_metric([slots, ",".join(running), ",".join(waiting)], time.time())
        return info
