"""Where running rows keep the KV they own: slots of equal capacity in shared arrays.

A slab is, per layer, one array [slots, heads, capacity, dim]. Slabs of one capacity grow by
new slabs (1, 1, 2, 4, 8, ... slots), never by reallocating one, so a row that joins or leaves
moves nobody else's KV, and rows of one slab are attended in one operation.
Owned by the engine thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from cache.block import LayerKV
from cache.prefix_cache import Reserve

GRANULE = 256  # tokens; the capacity of a slot is a multiple of it
MOST_SLOTS = 16


class LayerShape(NamedTuple):
    """The KV shape of one layer kept by token."""

    heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    dtype: mx.Dtype

    @staticmethod
    def of(cache: KVCache) -> LayerShape:
        """The shape of what an mlx-lm cache holds, which must not be empty."""
        keys, values = cache.keys, cache.values
        return LayerShape(
            keys.shape[1], keys.shape[3], values.shape[1], values.shape[3], keys.dtype
        )

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in this layer."""
        width = self.heads * self.key_dim + self.value_heads * self.value_dim
        return width * int(self.dtype.size)


def round_capacity(tokens: int) -> int:
    """``tokens`` rounded up to whole granules, at least one."""
    return max(1, -(-tokens // GRANULE)) * GRANULE


class Slab:
    """``slots`` tails of ``capacity`` tokens each, for every layer in ``shapes``."""

    def __init__(
        self, shapes: Sequence[LayerShape], slots: int, capacity: int, number: int
    ) -> None:
        self.number = number  # rows are attended in the order of their slabs
        self.capacity = capacity
        self.holders: list[object | None] = [None] * slots
        self.keys = [mx.zeros((slots, s.heads, capacity, s.key_dim), s.dtype) for s in shapes]
        self.values = [
            mx.zeros((slots, s.value_heads, capacity, s.value_dim), s.dtype) for s in shapes
        ]
        # Left lazy, the zeros would be allocated again by every use before the first write.
        mx.async_eval(self.keys, self.values)
        self.nbytes = slots * capacity * sum(s.token_bytes for s in shapes)

    def view(self, layer: int, slot: int, start: int, stop: int) -> LayerKV:
        """Views of the tokens [start, stop) of one slot."""
        pick = (slice(slot, slot + 1), slice(None), slice(start, stop))
        return LayerKV(self.keys[layer][pick], self.values[layer][pick])

    def write(self, layer: int, slot: int, start: int, kv: LayerKV) -> None:
        """Puts ``kv`` at the tokens [start, start + n) of one slot, in place."""
        stop = start + kv.keys.shape[2]
        assert stop <= self.capacity
        self.keys[layer][slot : slot + 1, :, start:stop] = kv.keys
        self.values[layer][slot : slot + 1, :, start:stop] = kv.values

    @property
    def used(self) -> int:
        """Number of slots taken."""
        return sum(h is not None for h in self.holders)


class SlabPool:
    """All slabs of one model. ``reserve`` is asked before memory is allocated."""

    def __init__(self, shapes: Sequence[LayerShape], reserve: Reserve) -> None:
        self.shapes = tuple(shapes)
        self.reserve = reserve
        self.token_bytes = sum(s.token_bytes for s in self.shapes)
        self.slabs: list[Slab] = []
        self._made = 0

    @property
    def nbytes(self) -> int:
        """Bytes held by all slabs, taken slots or not."""
        return sum(s.nbytes for s in self.slabs)

    @property
    def taken(self) -> int:
        """Number of slots taken."""
        return sum(s.used for s in self.slabs)

    def take(
        self, holder: object, capacity: int, spare: int = 0, tenant: str | None = None
    ) -> tuple[Slab, int] | None:
        """A free slot of ``capacity``, in a new slab where there is none.

        ``None`` where memory is lacking for a slab, or for ``spare`` more bytes beside it. A
        ``tenant`` does not get what others need more; see ``KvMemory.reserve``.
        """
        slab = self._free(capacity)
        if slab is None or spare:
            # Where a slab that foresees neighbours does not fit, one for a single row may.
            for slots in (0,) if slab else (self._next_slots(capacity), 1):
                if self.reserve(slots * capacity * self.token_bytes + spare, tenant):
                    break
            else:
                return None
            if slab is None:
                slab = Slab(self.shapes, slots, capacity, self._made)
                self._made += 1
                self.slabs.append(slab)
        slot = slab.holders.index(None)
        slab.holders[slot] = holder
        return slab, slot

    def release(self, slab: Slab, slot: int) -> None:
        """Gives a slot back; a slab with no taken slot is dropped."""
        assert slab.holders[slot] is not None
        slab.holders[slot] = None
        if not slab.used:
            self.slabs.remove(slab)

    def _free(self, capacity: int) -> Slab | None:
        fitting = (s for s in self.slabs if s.capacity == capacity and None in s.holders)
        return next(fitting, None)

    def _next_slots(self, capacity: int) -> int:
        taken = sum(len(s.holders) for s in self.slabs if s.capacity == capacity)
        return min(max(1, taken), MOST_SLOTS)
