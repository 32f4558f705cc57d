"""One running sequence: its tokens, what it borrows, and the KV and states that it keeps itself.

Owned by the engine thread.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from cache.block import LayerKV
from cache.lease import Lease
from cache.loan import ANYBODY, NO_LOAN, Borrower, Loan
from cache.node import Node
from cache.prefix_cache import PrefixCache

from .drafting import Drafting
from .sampling import RowSampling
from .slabs import Slab, SlabPool, round_capacity
from .variant import NGRAM, Variant

if TYPE_CHECKING:
    from .states import StateBatch


@dataclass(eq=False)
class Tail:
    """A slot of a slab that holds the tokens [anchor, anchor + capacity) of one row."""

    pool: SlabPool
    slab: Slab
    slot: int
    anchor: int

    @staticmethod
    def take(
        pool: SlabPool, anchor: int, capacity: int, spare: int = 0, tenant: str | None = None
    ) -> Tail | None:
        """A tail from ``anchor`` on; ``None`` where memory is lacking (for ``tenant``)."""
        taken = pool.take(Tail, capacity, spare, tenant)
        return None if taken is None else Tail(pool, *taken, anchor)

    @property
    def nbytes(self) -> int:
        """Bytes of the slot."""
        return self.slab.capacity * self.pool.token_bytes

    @property
    def capacity(self) -> int:
        """Number of tokens for which there is a place."""
        return self.slab.capacity

    @property
    def end(self) -> int:
        """The first position for which there is no place."""
        return self.anchor + self.capacity

    def kv(self, start: int, stop: int) -> list[LayerKV]:
        """Views of the tokens [start, stop) of every layer kept by token."""
        a, b = start - self.anchor, stop - self.anchor
        assert 0 <= a <= b <= self.capacity
        return [self.slab.view(i, self.slot, a, b) for i in range(len(self.slab.keys))]

    def put(self, start: int, layers: list[LayerKV]) -> None:
        """Stores the KV of consecutive tokens from position ``start`` on."""
        for i, kv in enumerate(layers):
            self.slab.write(i, self.slot, start - self.anchor, kv)
        mx.eval(self.slab.keys, self.slab.values)

    def moved(self, anchor: int, length: int, capacity: int) -> Tail | None:
        """A tail from ``anchor`` on with the stored tokens up to ``length``; this one is freed.

        ``None``, with nothing changed, where memory is lacking.
        """
        tail = Tail.take(self.pool, anchor, capacity)
        if tail is not None:
            if length > anchor:
                tail.put(anchor, self.kv(anchor, length))
            self.free()
        return tail

    def free(self) -> None:
        """Gives the slot back."""
        self.pool.release(self.slab, self.slot)


@dataclass(eq=False)
class Row:
    """A sequence on its way through the model; a ``Holder`` for the prefix cache.

    ``tokens`` are prompt and reply so far, ``length`` of them have been given to the model.
    ``cache`` is that of the row's namespace, ``variant`` names its adapter and draft.
    ``borrower`` is for whom it runs, ``loan`` what it found in the cache.
    ``states`` holds mlx-lm's own caches by layer index: of layers that are not kept by token,
    and of all layers where attention is copied; while the row decodes they lie in ``batch``.
    """

    id: str
    tokens: array[int]
    sampling: RowSampling
    variant: Variant
    cache: PrefixCache
    lease: Lease
    length: int
    boundaries: list[int]
    tail: Tail | None
    states: dict[int, Any]
    drafting: Drafting | None = None
    borrower: Borrower = ANYBODY
    loan: Loan = NO_LOAN
    batch: StateBatch | None = None

    @property
    def anchor(self) -> int:
        """The tokens [0, anchor) are attended in the tree's blocks."""
        return self.tail.anchor if self.tail is not None else 0

    @property
    def drafts_by_model(self) -> bool:
        """Whether the row's KV includes a draft model's."""
        return self.drafting is not None and self.drafting.name != NGRAM

    def lent(self) -> list[Node]:
        """The tree's nodes that the row attends in place."""
        return self.cache.lent(self.lease, self.anchor) if self.anchor else []

    def cut(self, count: int) -> None:
        """Forgets all tokens behind the first ``count``, which a stop made superfluous."""
        assert self.tail is not None or count == len(self.tokens)
        if count < len(self.tokens):
            del self.tokens[count:]
            self.length = min(self.length, count - 1)
            if self.drafting is not None:
                self.drafting.length = min(self.drafting.length, self.length)

    @property
    def remaining(self) -> int:
        """Tokens to prefill: all but the last, which enters with the first decode step."""
        return len(self.tokens) - 1 - self.length

    def single_states(self) -> dict[int, Any]:
        """The row's own states as single-row caches, taken out of the batch if they are there."""
        return self.states if self.batch is None else self.batch.extract(self)

    def kv(self, start: int, stop: int) -> list[LayerKV]:
        """Views of the KV of the positions [start, stop)."""
        if self.tail is not None:
            return self.tail.kv(start, stop)
        whole = [c for c in self.single_states().values() if isinstance(c, KVCache)]
        return [LayerKV(c.keys, c.values).tokens(start, stop) for c in whole]

    def rehome(self, anchor: int) -> None:
        """Keeps only what follows ``anchor``, in as few granules as that and the prompt need.

        Where memory is too short even for that, everything stays as it is, at the cost of a copy.
        """
        if self.tail is None or anchor <= self.tail.anchor:
            return
        planned = max(len(self.tokens), self.length + 1)
        moved = self.tail.moved(anchor, self.length, round_capacity(planned - anchor))
        self.tail = moved or self.tail
