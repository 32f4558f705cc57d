"""How one step reads and writes KV: a prefill chunk of one row, or a few tokens of many rows.

Owned by the engine thread. Built per step; holds no state beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from cache.block import Block
from cache.node import Node

from .attention import (
    NOTHING,
    Partial,
    merge,
    nothing,
    partial,
    shared_partial,
    stack,
)
from .rows import Row, Tail
from .slabs import Slab


class Span(NamedTuple):
    """The tokens [start, start + width) of a row, which one step gives to a model."""

    row: Row
    start: int
    width: int = 1

    @property
    def tail(self) -> Tail:
        """Where the step writes their KV."""
        assert self.row.tail is not None
        return self.row.tail


class PrefillPlan:
    """A chunk of one row: lent run and own tail are joined for one layer at a time."""

    def __init__(self, span: Span, lent: Sequence[Node]) -> None:
        self.offset = span.start
        self.tail = span.tail
        self.blocks = [_block(node) for node in lent]
        self.start = span.start - span.row.anchor
        self.stop = self.start + span.width
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
    """Spans of ``width`` tokens each, whose rows lie in neighbouring slots of one slab.

    They are the tokens [first, last) of the plan's order.
    """

    slab: Slab
    slot: int
    first: int
    last: int
    width: int
    length: int  # tokens to attend, the longest row's
    bias: mx.array | None  # [rows, 1, width, length], where not all tokens see all of it

    @property
    def rows(self) -> int:
        """Number of spans."""
        return (self.last - self.first) // self.width


class Target(NamedTuple):
    """Where the tokens [first, last) of the plan's order are written: one slab."""

    slab: Slab
    first: int
    last: int
    slots: list[int]
    ends: list[int]

    def write(self, array: mx.array, new: mx.array) -> None:
        """Puts ``new`` [tokens, heads, 1, dim] into ``array`` [slots, heads, capacity, dim]."""
        slot, end = self.slots[0], self.ends[0]
        if self.slots[-1] == slot and len(set(self.slots)) == 1:
            stop = end + len(self.ends)
            array[slot : slot + 1, :, end:stop] = new.transpose(2, 1, 0, 3)
        else:
            array[mx.array(self.slots), :, mx.array(self.ends)] = new[:, :, 0]


class Segment(NamedTuple):
    """One lent node and the tokens (of the plan's order) whose rows borrow it."""

    block: Block
    tokens: tuple[int, ...]


class Level(NamedTuple):
    """Lent nodes with disjoint borrowers, computed one by one and put in row order.

    ``missing`` tokens borrow nothing at this depth; ``order`` (None: as they come) restores the
    order of the segments' tokens followed by the missing ones.
    """

    segments: list[Segment]
    missing: int
    order: mx.array | None


class DecodePlan:
    """One or a few tokens for each of several rows: [T] tokens, each a row of the model's batch.

    Rows that borrow come first, so that those that do not are served by MLX's fused kernel.
    """

    def __init__(self, spans: Sequence[Span], lent: dict[Row, list[Node]]) -> None:
        ranked = sorted(spans, key=lambda s: rank(s.row))
        self.order, self.back = _orders(spans, ranked)
        self.offset = mx.array([s.start + i for s in spans for i in range(s.width)], mx.int32)
        borrowers = [s for s in ranked if s.row.anchor]
        self.borrowing = sum(s.width for s in borrowers)
        self.parts = list(_parts(ranked, self.borrowing))
        self.levels = _levels([lent[s.row] for s in borrowers for _ in range(s.width)])
        self.targets = _targets(ranked)

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Scatters each token's [T, heads, 1, dim] to its place in the row's tail."""
        keys, values = self._ranked(keys), self._ranked(values)
        for target in self.targets:
            tokens = slice(target.first, target.last)
            target.write(target.slab.keys[layer], keys[tokens])
            target.write(target.slab.values[layer], values[tokens])

    def attend(
        self, layer: int, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Attention of [T, query heads, 1, dim] over each row's lent run and tail."""
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
        tokens, heads = queries.shape[:2]
        by_row = queries.reshape(part.rows, part.width, heads, -1).swapaxes(1, 2)
        output = mx.fast.scaled_dot_product_attention(
            by_row, keys, values, scale=scale, mask=bias, sinks=sinks
        )
        return output.swapaxes(1, 2).reshape(tokens, heads, 1, -1)

    def _borrowers(
        self, layer: int, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        n, query_heads, _, dim = queries.shape
        heads = self.parts[0].slab.keys[layer].shape[1]
        scaled = (queries * scale).reshape(n, heads, query_heads // heads, dim)
        tails = [
            _tail_partial(part, layer, scaled[part.first : part.last])
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


def _orders(
    spans: Sequence[Span], ranked: Sequence[Span]
) -> tuple[mx.array | None, mx.array | None]:
    """Indices that put the tokens of ``spans`` in the order of ``ranked``, and back."""
    first, firsts = 0, {}
    for span in spans:
        firsts[span.row] = first
        first += span.width
    order = [firsts[s.row] + i for s in ranked for i in range(s.width)]
    if order == sorted(order):
        return None, None
    return mx.array(order), _inverse(order)


def _inverse(ranked: list[int]) -> mx.array:
    back = [0] * len(ranked)
    for new, old in enumerate(ranked):
        back[old] = new
    return mx.array(back)


def _parts(spans: Sequence[Span], borrowing: int) -> Iterator[Part]:
    """Cuts the ranked spans where width, slab or the neighbourhood of slots ends."""
    begin = first = 0
    for i in range(1, len(spans) + 1):
        last = first + (i - begin) * spans[begin].width
        if i < len(spans) and last != borrowing and _neighbours(spans[i - 1], spans[i]):
            continue
        yield _part(spans[begin:i], first, last)
        begin, first = i, last


def _part(spans: Sequence[Span], first: int, last: int) -> Part:
    width, tail = spans[0].width, spans[0].tail
    seen = [s.start + 1 - s.row.anchor for s in spans]  # by the first token of each
    length = max(seen) + width - 1
    bias = None
    if width > 1 or min(seen) < length:
        limit = mx.array(seen)[:, None, None] + mx.arange(width)[:, None]
        bias = mx.where(mx.arange(length) < limit, 0.0, NOTHING)[:, None]
    return Part(tail.slab, tail.slot, first, last, width, length, bias)


def _neighbours(a: Span, b: Span) -> bool:
    return a.width == b.width and a.tail.slab is b.tail.slab and a.tail.slot + 1 == b.tail.slot


def _targets(spans: Sequence[Span]) -> list[Target]:
    """Per slab: the ranked tokens in it, their slots and their places there."""
    targets: list[Target] = []
    first = 0
    for span in spans:
        tail, end = span.tail, span.start - span.row.anchor
        assert end >= 0 and end + span.width <= tail.capacity
        if not targets or targets[-1].slab is not tail.slab:
            targets.append(Target(tail.slab, first, first, [], []))
        first += span.width
        slots, ends = targets[-1].slots, targets[-1].ends
        slots.extend([tail.slot] * span.width)
        ends.extend(range(end, end + span.width))
        targets[-1] = targets[-1]._replace(last=first)
    return targets


def _tails(part: Part, layer: int) -> tuple[mx.array, mx.array]:
    pick = (slice(part.slot, part.slot + part.rows), slice(None))
    tokens = slice(0, part.length)
    return part.slab.keys[layer][(*pick, tokens)], part.slab.values[layer][(*pick, tokens)]


def _tail_partial(part: Part, layer: int, queries: mx.array) -> Partial:
    """Attention of scaled ``queries`` [tokens, heads, r, dim] over the tails of their rows."""
    keys, values = _tails(part, layer)
    if part.width == 1:
        return partial(queries, keys, values, part.bias)
    tokens, heads, r, dim = queries.shape
    shape = (part.rows, part.width, heads, r)
    # All queries of a row and head in one matrix, [rows, heads, r * width, dim].
    by_row = queries.reshape(*shape, dim).transpose(0, 2, 3, 1, 4)
    assert part.bias is not None
    bias = mx.tile(part.bias, (1, 1, r, 1))
    flat = partial(by_row.reshape(part.rows, heads, r * part.width, dim), keys, values, bias)
    apart = (x.reshape(part.rows, heads, r, part.width, -1) for x in flat)
    return Partial(*(x.transpose(0, 3, 1, 2, 4).reshape(tokens, heads, r, -1) for x in apart))


def _levels(paths: Sequence[list[Node]]) -> list[Level]:
    """Groups the lent nodes of tokens by depth."""
    levels = []
    for depth in range(max(map(len, paths), default=0)):
        borrowers: dict[int, tuple[Block, list[int]]] = {}
        for i, path in enumerate(paths):
            if depth < len(path):
                block = _block(path[depth])
                borrowers.setdefault(id(path[depth]), (block, []))[1].append(i)
        segments = [Segment(block, tuple(tokens)) for block, tokens in borrowers.values()]
        found = [i for s in segments for i in s.tokens]
        missing = [i for i in range(len(paths)) if depth >= len(paths[i])]
        ranked = found + missing
        order = None if ranked == sorted(ranked) else _inverse(ranked)
        levels.append(Level(segments, len(missing), order))
    return levels


def _level(level: Level, layer: int, queries: mx.array) -> Partial:
    parts = []
    for block, tokens in level.segments:
        first, last = tokens[0], tokens[-1] + 1
        adjoining = last - first == len(tokens)
        mine = queries[first:last] if adjoining else queries[mx.array(tokens)]
        parts.append(shared_partial(mine, *block.layers[layer]))
    if level.missing:
        parts.append(nothing(parts[0], level.missing))
    whole = stack(parts)
    if level.order is None:
        return whole
    return Partial(*(x[level.order] for x in whole))
