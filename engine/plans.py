"""How one step reads and writes KV: a prefill chunk of one row, or one token of many rows.

Owned by the engine thread. Built per step; holds no state beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from cache.block import Block
from cache.radix import Node

from .attention import (
    NOTHING,
    Partial,
    merge,
    nothing,
    partial,
    shared_partial,
    stack,
)
from .rows import Row
from .slabs import Slab


class PrefillPlan:
    """A chunk of one row: lent run and own tail are joined for one layer at a time."""

    def __init__(self, row: Row, lent: Sequence[Node], count: int) -> None:
        assert row.tail is not None
        self.offset = row.length
        self.tail = row.tail
        self.blocks = [_block(node) for node in lent]
        self.start = row.length - row.anchor
        self.stop = self.start + count
        self.fresh: tuple[mx.array, mx.array] | None = None

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Stores the chunk behind the tokens that the tail already has."""
        slab, slot = self.tail.slab, self.tail.slot
        slab.keys[layer][slot : slot + 1, :, self.start : self.stop] = keys
        slab.values[layer][slot : slot + 1, :, self.start : self.stop] = values
        self.fresh = keys, values

    def attend(
        self, layer: int, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Causal attention of [1, heads, L, dim] over lent run, tail and chunk."""
        assert self.fresh is not None
        own_keys, own_values = self.fresh
        keys = [b.layers[layer].keys for b in self.blocks]
        values = [b.layers[layer].values for b in self.blocks]
        if self.start:
            view = self.tail.slab.view(layer, self.tail.slot, 0, self.stop)
            own_keys, own_values = view
        keys.append(own_keys)
        values.append(own_values)
        return mx.fast.scaled_dot_product_attention(
            queries,
            mx.concatenate(keys, axis=2) if len(keys) > 1 else keys[0],
            mx.concatenate(values, axis=2) if len(values) > 1 else values[0],
            scale=scale,
            mask="causal" if queries.shape[2] > 1 else None,
            sinks=sinks,
        )


class Part(NamedTuple):
    """Rows [first, last) of the plan's order, in the neighbouring slots of one slab."""

    slab: Slab
    slot: int
    first: int
    last: int
    length: int  # tokens to attend, the longest row's
    bias: mx.array | None  # [n, 1, 1, length], where the rows' lengths differ


class Segment(NamedTuple):
    """One lent node and the rows (of the plan's order) that borrow it."""

    block: Block
    rows: tuple[int, ...]


class Level(NamedTuple):
    """Lent nodes with disjoint borrowers, computed one by one and put in row order.

    ``missing`` rows borrow nothing at this depth; ``order`` (None: as they come) restores the
    row order of the segments' rows followed by the missing ones.
    """

    segments: list[Segment]
    missing: int
    order: mx.array | None


class DecodePlan:
    """One token for each of ``rows``.

    Rows that borrow come first, so that those that do not are served by MLX's fused kernel.
    """

    def __init__(self, rows: Sequence[Row], lent: dict[Row, list[Node]]) -> None:
        ranked = sorted(range(len(rows)), key=lambda i: rank(rows[i]))
        self.order = _permutation(ranked)
        self.back = None if self.order is None else _inverse(ranked)
        self.rows = [rows[i] for i in ranked]
        self.offset = mx.array([r.length for r in rows], mx.int32)
        self.borrowing = sum(1 for r in self.rows if r.anchor)
        self.parts = list(_parts(self.rows, self.borrowing))
        self.levels = _levels([lent[r] for r in self.rows[: self.borrowing]])
        self.targets = _targets(self.rows)

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Scatters each row's token [B, heads, 1, dim] to the end of its tail."""
        keys, values = self._ranked(keys), self._ranked(values)
        for slab, first, last, slots, ends in self.targets:
            if last - first == 1:
                slot, end = slots[0], ends[0]
                slab.keys[layer][slot : slot + 1, :, end : end + 1] = keys[first:last]
                slab.values[layer][slot : slot + 1, :, end : end + 1] = values[first:last]
            else:
                at = (mx.array(slots), slice(None), mx.array(ends))
                slab.keys[layer][at] = keys[first:last, :, 0]
                slab.values[layer][at] = values[first:last, :, 0]

    def attend(
        self, layer: int, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Attention of [B, query heads, 1, dim] over each row's lent run and tail."""
        queries = self._ranked(queries)
        outputs = []
        if self.borrowing:
            outputs.append(self._borrowers(layer, queries[: self.borrowing], scale, sinks))
        outputs.extend(
            self._fused(layer, part, queries[part.first : part.last], scale, sinks)
            for part in self.parts
            if part.first >= self.borrowing
        )
        output = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)
        return output if self.back is None else output[self.back]

    def _ranked(self, x: mx.array) -> mx.array:
        return x if self.order is None else x[self.order]

    def _fused(
        self, layer: int, part: Part, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        keys, values = _tails(part, layer)
        bias = None if part.bias is None else part.bias.astype(queries.dtype)
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=scale, mask=bias, sinks=sinks
        )

    def _borrowers(
        self, layer: int, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        n, query_heads, _, dim = queries.shape
        heads = self.rows[0].tail.slab.keys[layer].shape[1]  # type: ignore[union-attr]
        scaled = (queries * scale).reshape(n, heads, query_heads // heads, dim)
        tails = [
            partial(scaled[part.first : part.last], *_tails(part, layer), part.bias)
            for part in self.parts
            if part.first < self.borrowing
        ]
        partials = [stack(tails)]
        partials.extend(_level(level, layer, scaled) for level in self.levels)
        if sinks is not None:
            sinks = sinks.reshape(heads, query_heads // heads)
        output = merge(partials, sinks)
        return output.reshape(n, query_heads, 1, -1).astype(queries.dtype)


def rank(row: Row) -> tuple[bool, int, int]:
    """Sort key: borrowers first, then as the tails lie in memory."""
    assert row.tail is not None
    return not row.anchor, row.tail.slab.number, row.tail.slot


def _block(node: Node) -> Block:
    assert isinstance(node.payload, Block), "lent, but not in a block"
    return node.payload


def _permutation(ranked: list[int]) -> mx.array | None:
    return None if ranked == sorted(ranked) else mx.array(ranked)


def _inverse(ranked: list[int]) -> mx.array:
    back = [0] * len(ranked)
    for new, old in enumerate(ranked):
        back[old] = new
    return mx.array(back)


def _parts(rows: Sequence[Row], borrowing: int) -> list[Part]:
    """Cuts the ranked rows where the slab, or the neighbourhood of slots, ends."""
    parts = []
    first = 0
    for i in range(1, len(rows) + 1):
        if i < len(rows) and i != borrowing and _neighbours(rows[i - 1], rows[i]):
            continue
        lengths = [r.length + 1 - r.anchor for r in rows[first:i]]
        longest = max(lengths)
        bias = None
        if min(lengths) < longest:
            seen = mx.arange(longest)[None] < mx.array(lengths)[:, None]
            bias = mx.where(seen, 0.0, NOTHING)[:, None, None, :]
        tail = rows[first].tail
        assert tail is not None
        parts.append(Part(tail.slab, tail.slot, first, i, longest, bias))
        first = i
    return parts


def _neighbours(a: Row, b: Row) -> bool:
    assert a.tail is not None and b.tail is not None
    return a.tail.slab is b.tail.slab and a.tail.slot + 1 == b.tail.slot


def _targets(rows: Sequence[Row]) -> list[tuple[Slab, int, int, list[int], list[int]]]:
    """Per slab: the ranked rows [first, last) in it, their slots and the place of their token."""
    targets = []
    first = 0
    for i in range(1, len(rows) + 1):
        slab = rows[first].tail.slab  # type: ignore[union-attr]
        if i < len(rows) and rows[i].tail.slab is slab:  # type: ignore[union-attr]
            continue
        tails = [r.tail for r in rows[first:i]]
        slots = [t.slot for t in tails if t is not None]
        ends = [r.length - r.anchor for r in rows[first:i]]
        assert all(0 <= end < slab.capacity for end in ends)
        targets.append((slab, first, i, slots, ends))
        first = i
    return targets


def _tails(part: Part, layer: int) -> tuple[mx.array, mx.array]:
    pick = (slice(part.slot, part.slot + part.last - part.first), slice(None))
    tokens = slice(0, part.length)
    return part.slab.keys[layer][(*pick, tokens)], part.slab.values[layer][(*pick, tokens)]


def _levels(paths: Sequence[list[Node]]) -> list[Level]:
    """Groups the rows' lent nodes by depth."""
    levels = []
    for depth in range(max(map(len, paths), default=0)):
        borrowers: dict[int, tuple[Block, list[int]]] = {}
        for i, path in enumerate(paths):
            if depth < len(path):
                block = _block(path[depth])
                borrowers.setdefault(id(path[depth]), (block, []))[1].append(i)
        segments = [Segment(block, tuple(rows)) for block, rows in borrowers.values()]
        found = [i for s in segments for i in s.rows]
        missing = [i for i in range(len(paths)) if depth >= len(paths[i])]
        ranked = found + missing
        order = None if ranked == sorted(ranked) else _inverse(ranked)
        levels.append(Level(segments, len(missing), order))
    return levels


def _level(level: Level, layer: int, queries: mx.array) -> Partial:
    parts = []
    for block, rows in level.segments:
        first, last = rows[0], rows[-1] + 1
        adjoining = last - first == len(rows)
        mine = queries[first:last] if adjoining else queries[mx.array(rows)]
        parts.append(shared_partial(mine, *block.layers[layer]))
    if level.missing:
        parts.append(nothing(parts[0], level.missing))
    whole = stack(parts)
    if level.order is None:
        return whole
    return Partial(*(x[level.order] for x in whole))
