"""For whom requests run: what a tenant may do, and its part of what all share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cache.loan import NOBODY

Priority = Literal["interactive", "batch"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use at most; None: no limit of its own.

    ``tokens_per_minute`` counts prompt and reply. ``concurrent`` requests run or wait, ``queued``
    ones wait. ``max_tokens`` bounds one reply, ``context`` prompt and reply together.
    ``cache_share`` is a part of the KV memory, above 0 and at most 1.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    queued: int | None = None
    max_tokens: int | None = None
    context: int | None = None
    cache_share: float | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A configured tenant; backlogged ones are served in proportion to their ``weight``.

    ``trust_domain`` None: the one that all tenants without one of their own share. ``models`` and
    ``adapters`` are the names that it may use, None: all.
    """

    name: str = NOBODY
    weight: float = 1.0
    priority: Priority = "interactive"
    trust_domain: str | None = None
    models: frozenset[str] | None = None
    adapters: frozenset[str] | None = None
    limits: Limits = field(default_factory=Limits)


DEFAULT = Tenant()
