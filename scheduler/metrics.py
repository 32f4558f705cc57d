"""The contract's Prometheus metrics, fed by the scheduler and read by a scrape.

Counters and histograms are written on the engine thread or the event loop (the client library
locks); gauges are read from a snapshot that the engine thread leaves behind.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache.loan import NOBODY
from engine.variant import BASE, Variant

from .events import FinishReason
from .limits import LimitName
from .stats import Phase, RequestStats, SchedulerStats

FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
LABELS = ("model", "adapter", "draft")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OTHER = "other"
STATES = ("lent", "owned", "cached", "free")
REASONS = (
    "queue_full",
    "prompt_too_large",
    "draining",
    "engine_dead",
    "model_failed",
    *(f"tenant_{limit}" for limit in get_args(LimitName)),
    OTHER,
)
RESULTS = ("loaded", "failed")
NORMALISED = ("billing_header", "tool_schema")
GRAMMARS = ("hit", "miss", "refused")


class Gauges(NamedTuple):
    """A picture of one model, taken between two steps; sizes in bytes.

    ``free`` bytes of the KV memory and ``active_memory`` belong to no model and are shown with
    the main one, so that sums over all models are right. ``kv_limit`` is what they share.
    ``deferred`` of the waiting ones need no memory or row, but a model that is being loaded or a
    prefix that is being computed. ``token_bytes`` is the KV of one token, 0 where the model is not
    loaded. The adapters are those of requests with a row, and of those that wait.
    """

    running: int = 0
    waiting: int = 0
    lent: int = 0
    owned: int = 0
    cached: int = 0
    free: int = 0
    evicted_tokens: int = 0
    active_memory: int = 0
    weights: int = 0
    kv_limit: int = 0
    loaded: int = 0
    deferred: int = 0
    token_bytes: int = 0
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()


class Definitions:
    """The metrics and their labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"commons_{name}", text, (*LABELS, *more), registry=registry)

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(f"commons_{name}", text, (*LABELS, *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *more: str) -> Histogram:
            labels = (*LABELS, *more)
            return Histogram(f"commons_{name}", text, labels, buckets=buckets, registry=registry)

        # by model, adapter and draft
        self.queries = counter("prefix_cache_queries", "Prompt tokens looked up in the cache")
        self.hits = counter("prefix_cache_hits", "Prompt tokens found in the cache")
        self.prompt = counter("prompt_tokens", "Prompt tokens of admitted requests")
        self.computed = counter("prompt_computed_tokens", "Prompt tokens run through the model")
        self.generation = counter("generation_tokens", "Tokens generated")
        self.draft = counter("draft_tokens", "Tokens proposed for replies")
        self.accepted = counter("draft_accepted_tokens", "Proposed tokens that were right")
        self.requests = counter("requests", "Requests that ended", "finish_reason")
        self.preemptions = counter("preemptions", "Rows put back into the queue")
        self.ttft = histogram("time_to_first_token_seconds", "Acceptance to first token", SLOW)
        self.itl = histogram("inter_token_latency_seconds", "Gap between two tokens", FAST)
        self.e2e = histogram("e2e_request_latency_seconds", "Acceptance to end", SLOW)
        self.queue = histogram("request_queue_time_seconds", "Acceptance to row", SLOW)
        self.prefill = histogram("request_prefill_time_seconds", "Row to first token", SLOW)
        # by model
        self.evicted = counter("prefix_cache_evicted_tokens", "Tokens evicted from the cache")
        self.rejections = counter("admission_rejections", "Requests refused", "reason")
        self.disconnects = counter("client_disconnects", "Clients gone before their reply")
        self.normalised = counter("prompt_normalised", "Prompts changed to be alike", "kind")
        self.grammars = counter("grammar_cache", "Requests for a grammar", "result")
        self.compile = histogram("grammar_compile_seconds", "Time to compile a grammar", FAST)
        self.loads = counter("model_loads", "Loads that ended", "result")
        self.unloads = counter("model_unloads", "Times that a model was unloaded")
        self.loaded = gauge("model_loaded", "1 while the model is in memory")
        self.running = gauge("requests_running", "Requests with a row in the engine")
        self.waiting = gauge("requests_waiting", "Requests in the queue")
        self.usage = gauge("kv_cache_usage_ratio", "Used part of the KV budget")
        self.bytes = gauge("kv_cache_bytes", "KV budget by state", "state")
        self.memory = gauge("memory_bytes", "Memory held by MLX", "kind")
        self.age = gauge("engine_heartbeat_age_seconds", "Time since the engine last moved")
        self.healthy = gauge("engine_healthy", "1 while the engine thread works")
        self.batch = histogram("batch_rows", "Rows in a decode step", ROWS)
        self.step = histogram("step_seconds", "Time of a forward pass", FAST, "phase")

    def forget(self, model: str, adapter: str) -> None:
        """Takes away the series of a model's adapter."""
        for metric in vars(self).values():
            metric.remove_by_labels({"model": model, "adapter": adapter})


class RequestSeries(RequestStats):
    """The series of the requests for one variant of a model; all are at 0 once it is made."""

    def __init__(self, of: Definitions, labels: dict[str, str]) -> None:
        # Looked up once: a lookup by labels costs more than the counting itself.
        self._queries, self._hits = of.queries.labels(**labels), of.hits.labels(**labels)
        self._prompt, self._computed = of.prompt.labels(**labels), of.computed.labels(**labels)
        self._generation = of.generation.labels(**labels)
        self._preemptions = of.preemptions.labels(**labels)
        self._draft, self._accepted = of.draft.labels(**labels), of.accepted.labels(**labels)
        self._ttft, self._itl = of.ttft.labels(**labels), of.itl.labels(**labels)
        self._e2e, self._queue = of.e2e.labels(**labels), of.queue.labels(**labels)
        self._prefill = of.prefill.labels(**labels)
        self._requests = {
            reason: of.requests.labels(**labels, finish_reason=reason)
            for reason in get_args(FinishReason)
        }

    def admitted(self, queued: float, prompt_tokens: int, cached_tokens: int) -> None:
        """Counts a request that got its row, and what the cache had for it."""
        self._queue.observe(queued)
        self._queries.inc(prompt_tokens)
        self._prompt.inc(prompt_tokens)
        self._hits.inc(cached_tokens)

    def computed(self, tokens: int) -> None:
        """Counts prompt tokens at the model's input."""
        self._computed.inc(tokens)

    def first_token(self, since_accepted: float, since_admitted: float) -> None:
        """Counts a token and observes the time to it."""
        self._generation.inc()
        self._ttft.observe(since_accepted)
        self._prefill.observe(since_admitted)

    def next_token(self, gap: float) -> None:
        """Counts a token and observes the gap before it."""
        self._generation.inc()
        self._itl.observe(gap)

    def drafted(self, proposed: int, accepted: int) -> None:
        """Counts proposals."""
        self._draft.inc(proposed)
        self._accepted.inc(accepted)

    def preempted(self) -> None:
        """Counts a preemption."""
        self._preemptions.inc()

    def finished(self, reason: FinishReason, seconds: float) -> None:
        """Counts a request that ended."""
        self._requests[reason].inc()
        self._e2e.observe(seconds)


class ModelMetrics(SchedulerStats):
    """All series of one model, labelled by model, adapter and draft; they begin at 0."""

    def __init__(self, of: Definitions, model: str) -> None:
        self._of = of
        self._model = model
        self._series: dict[Variant, RequestSeries] = {}
        self._evicted_before = 0
        labels = self._labels()
        for metric in (of.evicted, of.disconnects, of.unloads, of.loaded, of.compile):
            metric.labels(**labels)
        for metric in (of.running, of.waiting, of.usage, of.age, of.healthy):
            metric.labels(**labels)
        for name in REASONS:
            of.rejections.labels(**labels, reason=name)
        for kind in NORMALISED:
            of.normalised.labels(**labels, kind=kind)
        for result in GRAMMARS:
            of.grammars.labels(**labels, result=result)
        for result in RESULTS:
            of.loads.labels(**labels, result=result)
        for state in STATES:
            of.bytes.labels(**labels, state=state)
        for kind in ("active", "weights"):
            of.memory.labels(**labels, kind=kind)
        # Kept, since looking them up would cost more than what they do for each step.
        self._batch = of.batch.labels(**labels)
        self._step: dict[Phase, Histogram] = {
            phase: of.step.labels(**labels, phase=phase) for phase in get_args(Phase)
        }
        self.of(BASE)

    def of(self, variant: Variant, tenant: str = NOBODY) -> RequestSeries:
        """The series of the requests that run as ``variant``."""
        series = self._series.get(variant)
        if series is None:
            series = self._series[variant] = self._new_series(self._labels(variant))
        return series

    def _new_series(self, labels: dict[str, str]) -> RequestSeries:
        return RequestSeries(self._of, labels)

    def forget(self, adapter: str) -> None:
        """Takes away the series of an adapter that is served no more, so that they stay few."""
        for variant in [v for v in self._series if v.adapter == adapter]:
            del self._series[variant]
        self._of.forget(self._model, adapter)

    def step(self, phase: Phase, seconds: float, rows: int) -> None:
        """Observes a forward pass."""
        self._step[phase].observe(seconds)
        if phase == "decode":
            self._batch.observe(rows)

    def rejection(self, reason: str) -> None:
        """Counts a request that was refused before it was accepted."""
        known = reason if reason in REASONS else OTHER
        self._of.rejections.labels(**self._labels(), reason=known).inc()

    def normalised(self, kind: str) -> None:
        """Counts a prompt from which noise was taken, one of ``NORMALISED``."""
        self._of.normalised.labels(**self._labels(), kind=kind).inc()

    def grammar(self, result: str, seconds: float | None = None) -> None:
        """Counts a grammar that a request needs, with one of ``GRAMMARS``, and its compiling."""
        self._of.grammars.labels(**self._labels(), result=result).inc()
        if seconds is not None:
            self._of.compile.labels(**self._labels()).observe(seconds)

    def asked(self, copies: int) -> None:
        """A prompt is to get so many replies; counted under other servers' names only."""

    def client_disconnect(self) -> None:
        """Counts a client that went away before its reply was complete."""
        self._of.disconnects.labels(**self._labels()).inc()

    def load(self, result: str) -> None:
        """Counts a load that ended, with one of ``RESULTS``."""
        self._of.loads.labels(**self._labels(), result=result).inc()

    def unload(self) -> None:
        """Counts a time that the model was unloaded."""
        self._of.unloads.labels(**self._labels()).inc()

    def observe(self, gauges: Gauges, *, heartbeat_age: float, healthy: bool) -> None:
        """Sets all gauges; called before a scrape is rendered."""
        of, labels = self._of, self._labels()
        of.running.labels(**labels).set(gauges.running)
        of.waiting.labels(**labels).set(gauges.waiting)
        used = gauges.lent + gauges.owned + gauges.cached
        of.usage.labels(**labels).set(used / gauges.kv_limit if gauges.kv_limit else 0.0)
        for state in STATES:
            of.bytes.labels(**labels, state=state).set(getattr(gauges, state))
        of.memory.labels(**labels, kind="active").set(gauges.active_memory)
        of.memory.labels(**labels, kind="weights").set(gauges.weights)
        of.loaded.labels(**labels).set(gauges.loaded)
        of.age.labels(**labels).set(heartbeat_age)
        of.healthy.labels(**labels).set(healthy)
        of.evicted.labels(**labels).inc(gauges.evicted_tokens - self._evicted_before)
        self._evicted_before = gauges.evicted_tokens

    def _labels(self, variant: Variant = BASE) -> dict[str, str]:
        adapter, draft = variant
        return {"model": self._model, "adapter": adapter or "", "draft": draft or ""}


class Metrics:
    """The series of all models of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.here = Definitions(registry)

    def model(self, name: str) -> ModelMetrics:
        """The series of a configured model; to be called once for each."""
        return ModelMetrics(self.here, name)
