"""One number of bytes for the KV of all loaded models, and one order in which it is given up.

Owned by the engine thread. Knows of a model only its trees and what it holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from cache.shares import Claim, Part, Shares


class Holder(Protocol):
    """One model's part of the memory."""

    @property
    def held(self) -> int:
        """Bytes that its rows and trees hold or were promised."""
        ...

    def rows(self) -> Mapping[str, int]:
        """Bytes that the running rows of each tenant hold beside what is cached."""
        ...


class TenantPart(NamedTuple):
    """A tenant's weight, and the part (above 0, at most 1) of the memory that it may keep cached.

    None: as much as there is, while nobody else needs it.
    """

    weight: float = 1.0
    cache_share: float | None = None


class KvMemory:
    """Grants bytes up to ``limit``, and evicts for them what is cached and not on loan.

    Whatever model asks, and whatever model's it is: the tenant that takes most for its weight
    gives up first. The trees of all models count in ``shares``.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.shares = Shares()
        self._parts: dict[str, TenantPart] = {}
        self._holders: list[Holder] = []

    @staticmethod
    def of(size: int | KvMemory) -> KvMemory:
        """A memory for one model alone, where ``size`` is a number of bytes."""
        return KvMemory(size) if isinstance(size, int) else size

    @property
    def limit(self) -> int:
        """Bytes for all models together."""
        return self._limit

    @limit.setter
    def limit(self, size: int) -> None:
        self._limit = size
        self.configure(self._parts)

    def configure(self, parts: Mapping[str, TenantPart]) -> None:
        """Divides the memory between tenants; one that is not named weighs 1 and has no limit."""
        self._parts = dict(parts)
        self.shares.configure(
            {
                name: Part(
                    p.weight, None if p.cache_share is None else int(p.cache_share * self._limit)
                )
                for name, p in parts.items()
            }
        )

    def join(self, holder: Holder) -> None:
        """Counts what a model holds from now on."""
        self._holders.append(holder)

    def leave(self, holder: Holder) -> None:
        """Counts a model no longer; it holds nothing any more."""
        self._holders.remove(holder)

    @property
    def in_use(self) -> bool:
        """Whether any row runs, so that its end can be waited for."""
        return bool(self._rows())

    def _rows(self) -> Counter[str]:
        rows: Counter[str] = Counter()
        for holder in self._holders:
            rows.update(holder.rows())
        return rows

    def reserve(self, size: int, tenant: str | None = None) -> bool:
        """Whether ``size`` more bytes fit, after evicting as much as that takes.

        For a ``tenant`` nothing is taken from who would then have less for its weight: it waits,
        or does without. None: it has to be, whoever gives up.
        """
        missing = sum(h.held for h in self._holders) + size - self._limit
        if missing <= 0:
            return True
        rows = self._rows()
        claim = Claim(tenant, size, rows)
        while missing > 0:
            freed = self.shares.evict(claim)
            if freed < 0:
                return False
            missing -= freed
        return True
