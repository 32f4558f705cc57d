"""What the scheduler tells whoever counts: a seam without a dependency on any metrics library."""

from __future__ import annotations

from typing import Literal, NamedTuple

from cache.loan import NOBODY
from engine.variant import Variant

from .events import FinishReason

Phase = Literal["prefill", "decode"]


class Course(NamedTuple):
    """A request that had a row and has ended, in numbers; its times in seconds.

    ``computed_tokens`` are those of the prompt that the cache did not have; ``running`` is from
    the row to the last token, ``decoding`` from the first token to the last.
    """

    prompt_tokens: int
    computed_tokens: int
    generated_tokens: int
    max_tokens: int
    running: float
    decoding: float


class RequestStats:
    """Counts nothing; the base of what counts a tenant's requests for one variant of a model.

    All times in seconds; called on the engine thread.
    """

    def admitted(self, queued: float, prompt_tokens: int, cached_tokens: int) -> None:
        """A request got its row for the first time, with so many tokens from the cache."""

    def computed(self, tokens: int) -> None:
        """So many prompt tokens went through the model."""

    def first_token(self, since_accepted: float, since_admitted: float) -> None:
        """A request got its first token."""

    def next_token(self, gap: float) -> None:
        """A request got another token."""

    def drafted(self, proposed: int, accepted: int) -> None:
        """So many of the tokens proposed for a request were what the model chose, too."""

    def lent(self, lender: str, tokens: int) -> None:
        """A request found so many tokens in the cache that the tenant ``lender`` had computed."""

    def engine_time(self, seconds: float) -> None:
        """The request's part of a forward pass."""

    def preempted(self) -> None:
        """A row was put back into the queue."""

    def ended(self, course: Course) -> None:
        """A request that had a row is about to be ``finished``."""

    def finished(self, reason: FinishReason, seconds: float) -> None:
        """A request ended, so long after it was accepted."""


NO_REQUEST_STATS = RequestStats()


class SchedulerStats:
    """Counts nothing; the base of what counts the steps of one model."""

    def of(self, variant: Variant, tenant: str = NOBODY) -> RequestStats:
        """What counts the requests of a tenant that run as ``variant``."""
        return NO_REQUEST_STATS

    def step(self, phase: Phase, seconds: float, rows: int) -> None:
        """A forward pass was done; which tokens it computed or gave has been told before."""

    def started(self, request_id: str) -> None:
        """A request got its row for the first time."""

    def forget(self, adapter: str) -> None:
        """An adapter is served no more, and nobody uses it."""


NO_STATS = SchedulerStats()
