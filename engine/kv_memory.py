"""One number of bytes for the KV of all loaded models, and one order in which it is given up.

Owned by the engine thread. Knows of a model only its trees and what it holds.
"""

from __future__ import annotations

from typing import Protocol

from cache.forest import Forest
from cache.radix import Clock


class Holder(Protocol):
    """One model's part of the memory."""

    @property
    def forest(self) -> Forest:
        """Its trees, which run on the memory's clock."""
        ...

    @property
    def held(self) -> int:
        """Bytes that its rows and trees hold or were promised."""
        ...


class KvMemory:
    """Grants bytes up to ``limit``, and evicts for them what is cached and not on loan.

    Whatever model asks, the least recently used leaf of all models' trees goes first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clock = Clock()
        self._holders: list[Holder] = []

    @staticmethod
    def of(size: int | KvMemory) -> KvMemory:
        """A memory for one model alone, where ``size`` is a number of bytes."""
        return KvMemory(size) if isinstance(size, int) else size

    def join(self, holder: Holder) -> None:
        """Counts what a model holds from now on."""
        self._holders.append(holder)

    def leave(self, holder: Holder) -> None:
        """Counts a model no longer; it holds nothing any more."""
        self._holders.remove(holder)

    def reserve(self, size: int) -> bool:
        """Whether ``size`` more bytes fit, after evicting as much as that takes."""
        missing = sum(h.held for h in self._holders) + size - self.limit
        while missing > 0:
            freed = self._evict()
            if freed < 0:
                return False
            missing -= freed
        return True

    def _evict(self) -> int:
        """Drops the least recently used leaf of all models; its bytes, or -1."""
        found: tuple[int, Forest] | None = None
        for holder in self._holders:
            used = holder.forest.oldest()
            if used is not None and (found is None or used < found[0]):
                found = used, holder.forest
        return -1 if found is None else found[1].evict()
