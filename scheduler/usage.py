"""What tenants have used, by the day: tokens, requests, time, and what they lent each other.

Written on the engine thread, read from any other; a lock is held for a few additions at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from .events import FinishReason
from .stats import RequestStats

DAY = 86_400  # seconds


class Key(NamedTuple):
    """Whose use of which model; ``day`` is counted from 1970-01-01, in UTC."""

    day: int
    tenant: str
    model: str


@dataclass(slots=True)
class Counts:
    """Sums over requests; ``borrowed`` are tokens by the tenant that had computed them.

    That may be the borrower itself. ``requests`` have ended; ``queue_seconds`` are those from
    acceptance to a row.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    engine_seconds: float = 0.0
    queue_seconds: float = 0.0
    borrowed: dict[str, int] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Adds everything that ``other`` counts."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for lender, tokens in other.borrowed.items():
            self.borrowed[lender] = self.borrowed.get(lender, 0) + tokens


SUMS = tuple(f.name for f in fields(Counts) if f.name != "borrowed")


class Usage:
    """The counts of all tenants and models. ``clock`` tells Unix time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self._new: dict[Key, Counts] = {}
        self._taken: dict[str, Counts] = {}  # by tenant
        self._stats: dict[tuple[str, str], TenantUsage] = {}

    def of(self, model: str, tenant: str) -> TenantUsage:
        """What counts a tenant's requests for a model; on the engine thread."""
        stats = self._stats.get((model, tenant))
        if stats is None:
            stats = self._stats[model, tenant] = TenantUsage(self, model, tenant)
        return stats

    def counts(self, key: Key) -> Counts:
        """What is being counted under ``key``; ``lock`` must be held as long as it is used."""
        counts = self._new.get(key)
        if counts is None:
            counts = self._new[key] = Counts()
        return counts

    def take(self) -> dict[Key, Counts]:
        """What has been counted since the last call, for whoever keeps it."""
        with self.lock:
            taken, self._new = self._new, {}
            for key, counts in taken.items():
                self._taken.setdefault(key.tenant, Counts()).add(counts)
        return taken

    def peek(self) -> dict[Key, Counts]:
        """What the next ``take`` would return, as far as it has come."""
        found: dict[Key, Counts] = {}
        with self.lock:
            for key, counts in self._new.items():
                found.setdefault(key, Counts()).add(counts)
        return found

    def totals(self) -> Mapping[str, Counts]:
        """Everything since the process began, by tenant."""
        totals: dict[str, Counts] = {}
        with self.lock:
            for tenant, counts in self._taken.items():
                totals.setdefault(tenant, Counts()).add(counts)
            for key, counts in self._new.items():
                totals.setdefault(key.tenant, Counts()).add(counts)
        return totals


class TenantUsage(RequestStats):
    """Counts one tenant's requests for one model; called for every token of every row."""

    def __init__(self, usage: Usage, model: str, tenant: str) -> None:
        self._usage = usage
        self._key = Key(0, tenant, model)

    def admitted(self, queued: float, prompt_tokens: int, cached_tokens: int) -> None:
        """Counts a prompt, what the cache had of it, and how long it waited."""
        with self._usage.lock:
            counts = self._today()
            counts.prompt_tokens += prompt_tokens
            counts.cached_tokens += cached_tokens
            counts.queue_seconds += queued

    def first_token(self, since_accepted: float, since_admitted: float) -> None:
        """Counts a token."""
        self.next_token(0.0)

    def next_token(self, gap: float) -> None:
        """Counts a token."""
        with self._usage.lock:
            self._today().generated_tokens += 1

    def lent(self, lender: str, tokens: int) -> None:
        """Counts what the tenant borrowed."""
        with self._usage.lock:
            borrowed = self._today().borrowed
            borrowed[lender] = borrowed.get(lender, 0) + tokens

    def engine_time(self, seconds: float) -> None:
        """Counts a part of a forward pass."""
        with self._usage.lock:
            self._today().engine_seconds += seconds

    def finished(self, reason: FinishReason, seconds: float) -> None:
        """Counts a request."""
        with self._usage.lock:
            self._today().requests += 1

    def _today(self) -> Counts:
        day = int(self._usage.clock() // DAY)
        if day != self._key.day:
            self._key = self._key._replace(day=day)
        return self._usage.counts(self._key)
