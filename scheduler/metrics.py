"""The contract's Prometheus metrics, fed by the scheduler and read by a scrape.

Counters and histograms are written on the engine thread or the event loop (the client library
locks); gauges are read from a snapshot that the engine thread leaves behind.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .events import FinishReason
from .stats import Phase, SchedulerStats

FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REASONS = ("queue_full", "prompt_too_large", "draining", "engine_dead")


class Gauges(NamedTuple):
    """A consistent picture of the engine, taken between two steps."""

    running: int = 0
    waiting: int = 0
    lent: int = 0
    owned: int = 0
    cached: int = 0
    free: int = 0
    evicted_tokens: int = 0
    active_memory: int = 0
    weights: int = 0


class Metrics(SchedulerStats):
    """All series of one engine, labelled by model, adapter and draft."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._labels: dict[str, str] = {}
        names = ("model", "adapter", "draft")

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"commons_{name}", text, (*names, *more), registry=registry)

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(f"commons_{name}", text, (*names, *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *more: str) -> Histogram:
            return Histogram(
                f"commons_{name}", text, (*names, *more), buckets=buckets, registry=registry
            )

        self._queries = counter("prefix_cache_queries", "Prompt tokens looked up in the cache")
        self._hits = counter("prefix_cache_hits", "Prompt tokens found in the cache")
        self._evicted = counter("prefix_cache_evicted_tokens", "Tokens evicted from the cache")
        self._prompt = counter("prompt_tokens", "Prompt tokens of admitted requests")
        self._computed = counter("prompt_computed_tokens", "Prompt tokens run through the model")
        self._generation = counter("generation_tokens", "Tokens generated")
        self._requests = counter("requests", "Requests that ended", "finish_reason")
        self._rejections = counter("admission_rejections", "Requests refused", "reason")
        self._preemptions = counter("preemptions", "Rows put back into the queue")
        self._disconnects = counter("client_disconnects", "Clients gone before their reply")
        self._running = gauge("requests_running", "Requests with a row in the engine")
        self._waiting = gauge("requests_waiting", "Requests in the queue")
        self._usage = gauge("kv_cache_usage_ratio", "Used part of the KV budget")
        self._bytes = gauge("kv_cache_bytes", "KV budget by state", "state")
        self._memory = gauge("memory_bytes", "Memory held by MLX", "kind")
        self._age = gauge("engine_heartbeat_age_seconds", "Time since the engine last moved")
        self._healthy = gauge("engine_healthy", "1 while the engine thread works")
        self._ttft = histogram("time_to_first_token_seconds", "Acceptance to first token", SLOW)
        self._itl = histogram("inter_token_latency_seconds", "Gap between two tokens", FAST)
        self._e2e = histogram("e2e_request_latency_seconds", "Acceptance to end", SLOW)
        self._queue = histogram("request_queue_time_seconds", "Acceptance to row", SLOW)
        self._prefill = histogram("request_prefill_time_seconds", "Row to first token", SLOW)
        self._batch = histogram("batch_rows", "Rows in a decode step", ROWS)
        self._step = histogram("step_seconds", "Time of a forward pass", FAST, "phase")
        self._evicted_before = 0

    def start(self, model: str, adapter: str = "", draft: str = "") -> None:
        """Sets the labels, and all bounded series to 0 so that panels have data at once."""
        labels = {"model": model, "adapter": adapter, "draft": draft}
        self._labels = labels
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram) and len(metric._labelnames) == 3:
                metric.labels(**labels)
        for reason in get_args(FinishReason):
            self._requests.labels(**labels, finish_reason=reason)
        for name in REASONS:
            self._rejections.labels(**labels, reason=name)
        for state in ("lent", "owned", "cached", "free"):
            self._bytes.labels(**labels, state=state)
        for kind in ("active", "weights"):
            self._memory.labels(**labels, kind=kind)
        for phase in get_args(Phase):
            self._step.labels(**labels, phase=phase)

    def admitted(self, queued: float, prompt_tokens: int, cached_tokens: int) -> None:
        """Counts a request that got its row, and what the cache had for it."""
        self._queue.labels(**self._labels).observe(queued)
        self._queries.labels(**self._labels).inc(prompt_tokens)
        self._prompt.labels(**self._labels).inc(prompt_tokens)
        self._hits.labels(**self._labels).inc(cached_tokens)

    def computed(self, tokens: int) -> None:
        """Counts prompt tokens at the model's input."""
        self._computed.labels(**self._labels).inc(tokens)

    def first_token(self, since_accepted: float, since_admitted: float) -> None:
        """Observes the time to first token."""
        self._ttft.labels(**self._labels).observe(since_accepted)
        self._prefill.labels(**self._labels).observe(since_admitted)

    def next_token(self, gap: float) -> None:
        """Observes an inter-token latency."""
        self._itl.labels(**self._labels).observe(gap)

    def generated(self, tokens: int) -> None:
        """Counts generated tokens."""
        self._generation.labels(**self._labels).inc(tokens)

    def step(self, phase: Phase, seconds: float, rows: int) -> None:
        """Observes a forward pass."""
        self._step.labels(**self._labels, phase=phase).observe(seconds)
        if phase == "decode":
            self._batch.labels(**self._labels).observe(rows)

    def preempted(self) -> None:
        """Counts a preemption."""
        self._preemptions.labels(**self._labels).inc()

    def finished(self, reason: FinishReason, seconds: float) -> None:
        """Counts a request that ended."""
        self._requests.labels(**self._labels, finish_reason=reason).inc()
        self._e2e.labels(**self._labels).observe(seconds)

    def rejection(self, reason: str) -> None:
        """Counts a request that was refused before it was accepted."""
        known = reason if reason in REASONS else "other"
        self._rejections.labels(**self._labels, reason=known).inc()

    def client_disconnect(self) -> None:
        """Counts a client that went away before its reply was complete."""
        self._disconnects.labels(**self._labels).inc()

    def observe(self, gauges: Gauges, *, heartbeat_age: float, healthy: bool) -> None:
        """Sets all gauges; called before a scrape is rendered."""
        labels = self._labels
        self._running.labels(**labels).set(gauges.running)
        self._waiting.labels(**labels).set(gauges.waiting)
        total = gauges.lent + gauges.owned + gauges.cached + gauges.free
        self._usage.labels(**labels).set((total - gauges.free) / total if total else 0.0)
        for state in ("lent", "owned", "cached", "free"):
            self._bytes.labels(**labels, state=state).set(getattr(gauges, state))
        self._memory.labels(**labels, kind="active").set(gauges.active_memory)
        self._memory.labels(**labels, kind="weights").set(gauges.weights)
        self._age.labels(**labels).set(heartbeat_age)
        self._healthy.labels(**labels).set(healthy)
        self._evicted.labels(**labels).inc(gauges.evicted_tokens - self._evicted_before)
        self._evicted_before = gauges.evicted_tokens
