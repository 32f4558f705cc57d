"""Who is told what one model's scheduler counts: the metrics, the tenants' usage, the limits."""

from __future__ import annotations

from collections.abc import Callable

from cache.loan import NOBODY
from engine.variant import Variant

from .events import FinishReason
from .stats import Course, Phase, RequestStats, SchedulerStats
from .usage import Usage


class Accounting(SchedulerStats):
    """On the engine thread. ``started`` gets the name of each request that no longer waits."""

    def __init__(
        self, metrics: SchedulerStats, model: str, usage: Usage, started: Callable[[str], None]
    ) -> None:
        self._metrics = metrics
        self._model = model
        self._usage = usage
        self._started = started
        self._both: dict[tuple[Variant, str], Both] = {}

    def of(self, variant: Variant, tenant: str = NOBODY) -> RequestStats:
        """What counts the requests of a tenant that run as ``variant``."""
        both = self._both.get((variant, tenant))
        if both is None:
            metrics = self._metrics.of(variant, tenant)
            both = self._both[variant, tenant] = Both(metrics, self._usage.of(self._model, tenant))
        return both

    def step(self, phase: Phase, seconds: float, rows: int) -> None:
        """A forward pass was done."""
        self._metrics.step(phase, seconds, rows)

    def started(self, request_id: str) -> None:
        """A request got its row for the first time."""
        self._started(request_id)

    def forget(self, adapter: str) -> None:
        """An adapter is served no more, and nobody uses it."""
        for variant, tenant in [key for key in self._both if key[0].adapter == adapter]:
            del self._both[variant, tenant]
        self._metrics.forget(adapter)


class Both(RequestStats):
    """Tells two who count the same requests."""

    def __init__(self, one: RequestStats, other: RequestStats) -> None:
        self._one = one
        self._other = other

    def admitted(self, queued: float, prompt_tokens: int, cached_tokens: int) -> None:
        """A request got its row."""
        self._one.admitted(queued, prompt_tokens, cached_tokens)
        self._other.admitted(queued, prompt_tokens, cached_tokens)

    def computed(self, tokens: int) -> None:
        """So many prompt tokens went through the model."""
        self._one.computed(tokens)
        self._other.computed(tokens)

    def first_token(self, since_accepted: float, since_admitted: float) -> None:
        """A request got its first token."""
        self._one.first_token(since_accepted, since_admitted)
        self._other.first_token(since_accepted, since_admitted)

    def next_token(self, gap: float) -> None:
        """A request got another token."""
        self._one.next_token(gap)
        self._other.next_token(gap)

    def drafted(self, proposed: int, accepted: int) -> None:
        """So many proposed tokens were right."""
        self._one.drafted(proposed, accepted)
        self._other.drafted(proposed, accepted)

    def lent(self, lender: str, tokens: int) -> None:
        """A request found what ``lender`` had computed."""
        self._one.lent(lender, tokens)
        self._other.lent(lender, tokens)

    def engine_time(self, seconds: float) -> None:
        """The request's part of a forward pass."""
        self._one.engine_time(seconds)
        self._other.engine_time(seconds)

    def preempted(self) -> None:
        """A row was put back into the queue."""
        self._one.preempted()
        self._other.preempted()

    def ended(self, course: Course) -> None:
        """A request that had a row has ended."""
        self._one.ended(course)
        self._other.ended(course)

    def finished(self, reason: FinishReason, seconds: float) -> None:
        """A request ended."""
        self._one.finished(reason, seconds)
        self._other.finished(reason, seconds)
