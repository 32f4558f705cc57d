"""What a node of the tree holds: KV arrays that own their memory, or a pointer to a running row.

Owned by the engine thread. Knows nothing of models, requests or the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx


class LayerKV(NamedTuple):
    """One layer's keys [1, heads, n, key_dim] and values [1, heads, n, value_dim]."""

    keys: mx.array
    values: mx.array

    def tokens(self, start: int, stop: int) -> LayerKV:
        """The tokens [start, stop) as views of the same buffers."""
        return LayerKV(self.keys[:, :, start:stop], self.values[:, :, start:stop])


def owned(x: mx.array) -> mx.array:
    """A copy of ``x`` in a buffer of its own size.

    A slice keeps its whole parent alive, and ``mx.contiguous`` returns a view of a slice that
    happens to be contiguous; only a computed result is sure to own exactly its bytes.
    """
    if x.dtype == mx.bool_ or mx.issubdtype(x.dtype, mx.integer):
        return x | mx.zeros((1,) * x.ndim, x.dtype)
    return x * mx.ones((1,) * x.ndim, x.dtype)


def join(parts: Sequence[LayerKV]) -> LayerKV:
    """The token-wise concatenation of ``parts`` in new buffers (at least one part)."""
    if len(parts) == 1:
        return LayerKV(owned(parts[0].keys), owned(parts[0].values))
    keys = mx.concatenate([p.keys for p in parts], axis=2)
    return LayerKV(keys, mx.concatenate([p.values for p in parts], axis=2))


class Block:
    """Immutable KV of ``length`` consecutive tokens, one entry per layer that is kept by token."""

    __slots__ = ("layers", "length", "nbytes")

    def __init__(self, layers: Sequence[LayerKV], length: int) -> None:
        self.layers = tuple(layers)
        self.length = length
        self.nbytes = sum(kv.keys.nbytes + kv.values.nbytes for kv in self.layers)

    @staticmethod
    def copied(pieces: Sequence[Sequence[LayerKV]], length: int) -> Block:
        """A block of ``length`` tokens from consecutive ``pieces`` (per piece, one per layer)."""
        layers = []
        for parts in zip(*pieces, strict=True):
            layers.append(join(parts))
            mx.eval(layers[-1])  # one layer at a time bounds the transient copy
        return Block(layers, length)

    def tokens(self, start: int, stop: int) -> list[LayerKV]:
        """Views of the tokens [start, stop) of every layer."""
        return [kv.tokens(start, stop) for kv in self.layers]

    def split(self, at: int) -> tuple[Block, Block]:
        """Two blocks, [0, at) and [at, length), each with memory of its own."""
        assert 0 < at < self.length
        rest = Block.copied([self.tokens(at, self.length)], self.length - at)
        return Block.copied([self.tokens(0, at)], at), rest

    @staticmethod
    def concat(blocks: Sequence[Block]) -> Block:
        """One block with the tokens of all ``blocks`` in order."""
        return Block.copied([b.layers for b in blocks], sum(b.length for b in blocks))


class PublicBlock(Block):
    """The tokens [start, stop) of another tree's block, which outlives this one.

    It costs no bytes of its own, and none where it is cut: its parts are views.
    """

    __slots__ = ("base", "start", "stop")

    def __init__(self, base: Block, start: int, stop: int) -> None:
        assert 0 <= start < stop <= base.length
        whole = stop - start == base.length
        super().__init__(base.layers if whole else base.tokens(start, stop), stop - start)
        self.nbytes = 0
        self.base, self.start, self.stop = base, start, stop

    def split(self, at: int) -> tuple[PublicBlock, PublicBlock]:
        """The same tokens as two payloads, [0, at) and [at, length)."""
        cut = self.start + at
        return PublicBlock(self.base, self.start, cut), PublicBlock(self.base, cut, self.stop)

    def joined(self, after: PublicBlock) -> PublicBlock:
        """The whole of two parts of one block, of which ``after`` follows this one."""
        assert self.base is after.base and self.stop == after.start
        return PublicBlock(self.base, self.start, after.stop)


class Holder(Protocol):
    """A running row, as far as the cache needs to know it."""

    @property
    def anchor(self) -> int:
        """The tokens [0, anchor) are lent to the row; what follows it keeps itself."""
        ...

    def kv(self, start: int, stop: int) -> list[LayerKV]:
        """Views of the KV that the row keeps for the positions [start, stop)."""
        ...

    def rehome(self, anchor: int) -> None:
        """From now on [0, anchor) is lent: keep only what follows, in less memory."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """Tokens whose KV lies in the tail of a running row: cached without a second copy.

    ``start`` is the absolute position of the first token. It costs no bytes of its own: the
    row's tail is accounted where it is allocated.
    """

    holder: Holder
    start: int
    length: int

    @property
    def nbytes(self) -> int:
        return 0

    def split(self, at: int) -> tuple[Resident, Resident]:
        """The same tokens as two payloads, [0, at) and [at, length)."""
        assert 0 < at < self.length
        return (
            Resident(self.holder, self.start, at),
            Resident(self.holder, self.start + at, self.length - at),
        )

    def block(self) -> Block:
        """These tokens as a block with memory of its own."""
        return Block.copied([self.holder.kv(self.start, self.start + self.length)], self.length)
