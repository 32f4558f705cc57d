"""What one model's rows and trees take of the memory for KV. Owned by the engine thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cache.forest import Forest

from .kv_memory import KvMemory
from .slabs import GRANULE, SlabPool, round_capacity


class Memory(NamedTuple):
    """Bytes of KV by state: lent to rows, owned by rows, cached and unused, free."""

    lent: int
    owned: int
    cached: int
    free: int


class RowBytes(NamedTuple):
    """What a row needs beside its tail, in mlx-lm's own caches.

    ``state`` bytes are for layers that are not kept by token, ``token`` bytes for each token of
    those that are, where attention is copied.
    """

    state: int
    token: int

    def promised(self, lengths: Sequence[int]) -> int:
        """The most bytes that the caches of rows of such lengths may take.

        mlx-lm pads a batch to its longest row, and copies it when rows join.
        """
        if not lengths or not any(self):
            return 0
        longest = round_capacity(max(lengths)) + GRANULE
        return 2 * len(lengths) * (self.state + longest * self.token)


class Budget:
    """One model's view of the memory that all models share.

    ``pools`` hold the tails of rows of different kinds. ``lengths`` tells how many tokens each
    running row has, ``rows`` how many bytes of tails each tenant.
    """

    def __init__(
        self,
        memory: KvMemory,
        pools: Sequence[SlabPool],
        forest: Forest,
        row_bytes: RowBytes,
        lengths: Callable[[], list[int]],
        rows: Callable[[], Mapping[str, int]],
    ) -> None:
        self.forest = forest
        self._memory = memory
        self._pools = tuple(pools)
        self.row_bytes = row_bytes
        self._lengths = lengths
        self.rows = rows
        memory.join(self)

    @property
    def limit(self) -> int:
        """Bytes for the KV of all models together."""
        return self._memory.limit

    @limit.setter
    def limit(self, size: int) -> None:
        self._memory.limit = size

    @property
    def held(self) -> int:
        """Bytes that this model's rows and trees hold or were promised."""
        return self.pooled + self.forest.nbytes + self.row_bytes.promised(self._lengths())

    @property
    def pooled(self) -> int:
        """Bytes of all tails."""
        return sum(pool.nbytes for pool in self._pools)

    def reserve(self, size: int, tenant: str | None = None) -> bool:
        """Whether ``size`` more bytes fit; see ``KvMemory.reserve``."""
        return self._memory.reserve(size, tenant)

    @property
    def memory_in_use(self) -> bool:
        """Whether any model has a running row."""
        return self._memory.in_use

    def leave(self) -> None:
        """Gives up what the trees hold, if no row is left, and the place among the models."""
        if not self._lengths():
            self.forest.clear()
        self._memory.leave(self)

    def spare(self, tokens: int) -> int:
        """Bytes that one more row of so many tokens takes beside its tail.

        Every running row should still be able to grow a little.
        """
        lengths = self._lengths()
        more = self.row_bytes.promised([*lengths, tokens]) - self.row_bytes.promised(lengths)
        return more + sum(p.taken * GRANULE * p.token_bytes for p in self._pools) // 4

    def fits(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens could ever be served within the limit."""
        return self.least_bytes(tokens) <= self.limit

    @property
    def most_tokens(self) -> int:
        """The longest prompt that ``fits``."""
        # What a row needs is linear in whole granules.
        granule = self.least_bytes(2 * GRANULE) - self.least_bytes(GRANULE)
        if not granule:
            return (1 << 30) if self.fits(1) else 0
        spare = self.limit - self.least_bytes(GRANULE)
        return max(0, spare // granule + 1) * GRANULE

    def least_bytes(self, tokens: int) -> int:
        """Bytes that a lone, cold row with so many prompt tokens needs, and to grow a little."""
        token_bytes = max(pool.token_bytes for pool in self._pools)
        own = (round_capacity(tokens) + GRANULE) * token_bytes
        return own + self.row_bytes.promised([tokens])

    def memory(self, used: int) -> Memory:
        """Where this model's bytes are, of which ``used`` are in use, and what they leave free."""
        lent, kept = self.forest.lent, self.forest.nbytes
        return Memory(lent, used - kept, kept - lent, max(0, self.limit - used))
