"""One request on its way through the scheduler. Owned by the engine thread."""

from __future__ import annotations

from array import array

from engine.rows import Row
from engine.sampling import RowSampling

from .request import Request
from .stats import RequestStats


class Entry:
    """One request from acceptance to its terminal event."""

    __slots__ = (
        "accepted",
        "admitted",
        "boundaries",
        "computed",
        "generated",
        "hit",
        "last_token",
        "passed_over",
        "request",
        "row",
        "sampling",
        "started",
        "stats",
        "tokens",
    )

    def __init__(self, request: Request, vocab_size: int, now: float, stats: RequestStats) -> None:
        self.request = request
        self.stats = stats
        self.tokens = array("i", request.prompt)
        self.boundaries = request.boundaries
        self.sampling = RowSampling(request.sampling, request.prompt, vocab_size)
        self.row: Row | None = None
        self.hit = 0  # prompt tokens found in the cache when first admitted
        self.computed = 0  # prompt tokens that went through the model
        self.generated = 0
        self.passed_over = 0
        self.accepted = now
        self.admitted = 0.0
        self.started = 0.0
        self.last_token = 0.0

    @property
    def cached(self) -> int:
        """Prompt tokens that were reused; what was computed twice does not count as reuse."""
        return max(0, min(self.hit, len(self.request.prompt) - self.computed))
