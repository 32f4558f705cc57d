"""One request on its way through the scheduler. Owned by the engine thread."""

from __future__ import annotations

import math
from array import array

from engine.rows import Row
from engine.sampling import RowSampling
from engine.steering import Steering

from .ledger import Account
from .request import Request
from .stats import RequestStats

NEVER = -1.0  # before all times


class Entry:
    """One request from acceptance to its terminal event."""

    __slots__ = (
        "accepted",
        "account",
        "admitted",
        "boundaries",
        "computed",
        "displaced",
        "generated",
        "hit",
        "last_token",
        "outranked",
        "passed_over",
        "promised",
        "request",
        "row",
        "sampling",
        "stats",
        "tokens",
    )

    def __init__(
        self,
        request: Request,
        vocab_size: int,
        now: float,
        stats: RequestStats,
        account: Account,
    ) -> None:
        self.request = request
        self.stats = stats
        self.account = account
        self.tokens = array("i", request.prompt)
        self.boundaries = request.boundaries
        steering = None
        if request.constraint is not None:
            steering = Steering(request.constraint, vocab_size, request.log_context)
        self.sampling = RowSampling(request.sampling, request.prompt, vocab_size, steering)
        self.row: Row | None = None
        self.hit = 0  # prompt tokens found in the cache when first admitted
        self.computed = 0  # prompt tokens that went through the model
        self.generated = 0
        self.passed_over = 0  # times that a later one of the same tenant went first
        self.outranked = 0  # times that a later one of a higher class went first
        self.displaced = 0  # times that it made way for another tenant's
        self.promised = 0.0  # of the account's promise, for this request
        self.accepted = now
        self.admitted = NEVER
        self.last_token = 0.0

    def promise(self, seconds: float) -> None:
        """Counts what the request is expected to take from now on as its tenant's already."""
        self.promised = seconds / self.account.weight
        self.account.promised += self.promised

    def count(self, now: float) -> None:
        """One more token has been generated."""
        self.generated += 1
        if self.generated == 1:
            self.stats.first_token(now - self.accepted, now - self.admitted)
        else:
            self.stats.next_token(now - self.last_token)
        self.last_token = now

    def charge(self, seconds: float) -> None:
        """Counts engine time that the request has taken."""
        self.account.charge(seconds)
        self.forgo(seconds / self.account.weight)
        self.stats.engine_time(seconds)

    def forgo(self, promised: float = math.inf) -> None:
        """Takes back what was promised, or a part of it."""
        part = min(self.promised, promised)
        self.promised -= part
        self.account.promised -= part

    @property
    def cached(self) -> int:
        """Prompt tokens that were reused; what was computed twice does not count as reuse."""
        return max(0, min(self.hit, len(self.request.prompt) - self.computed))
