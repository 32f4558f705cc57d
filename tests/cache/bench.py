"""Rows that only hold small arrays in place of KV, on a real prefix cache."""

from __future__ import annotations

from array import array

import mlx.core as mx

from cache.block import Block, LayerKV, PublicBlock, Resident
from cache.keeping import Keeping
from cache.lease import Lease
from cache.loan import NOBODY, Loan
from cache.prefix_cache import PrefixCache

LAYERS, HEADS, DIM = 2, 1, 2
TOKEN_BYTES = LAYERS * HEADS * DIM * 2 * 4


def kv_of(tokens, start: int) -> list[LayerKV]:
    """KV from which token, position and layer can be read back."""
    layers = []
    for layer in range(LAYERS):
        rows = [[t, 1000 * layer + start + i] for i, t in enumerate(tokens)]
        keys = mx.array(rows, mx.float32).reshape(1, HEADS, len(rows), DIM)
        layers.append(LayerKV(keys, -keys))
    return layers


class Row:
    """A holder: the tokens from its anchor on, as one array per layer."""

    def __init__(self, tokens, anchor: int = 0) -> None:
        self.tokens = array("i", tokens)
        self.anchor = anchor
        self.layers = kv_of(self.tokens[anchor:], anchor)
        self.over = False

    def kv(self, start: int, stop: int) -> list[LayerKV]:
        assert not self.over, "a row that has ended is asked for its KV"
        assert self.anchor <= start <= stop <= len(self.tokens)
        return [kv.tokens(start - self.anchor, stop - self.anchor) for kv in self.layers]

    def rehome(self, anchor: int) -> None:
        assert anchor >= self.anchor
        self.layers = [kv.tokens(anchor - self.anchor, len(self.tokens)) for kv in self.layers]
        self.anchor = anchor


class Bench:
    """A cache with a budget in tokens, and the rows that run on it."""

    def __init__(self, budget: int = 1 << 30, **options) -> None:
        self.budget = budget * TOKEN_BYTES
        self.evicting = True
        self.cache = PrefixCache(reserve=self.reserve, **options)
        self.running: dict[Row, Lease] = {}
        self.loans: dict[Row, Loan] = {}

    @classmethod
    def over(cls, cache: PrefixCache) -> Bench:
        """Rows on a cache that has its budget from elsewhere."""
        bench = cls()
        bench.cache = cache
        return bench

    def reserve(self, size: int, tenant: str | None) -> bool:
        while self.cache.tree.nbytes + size > self.budget:
            if not self.evicting or self.cache.evict() < 0:
                return False
        return True

    def start(self, tokens, tenant: str = NOBODY) -> Row | None:
        """Admits a row, gives it all of its KV and commits it, as the engine would."""
        prompt = array("i", tokens)
        hit = self.cache.lookup(prompt)
        leased = self.cache.lend(prompt, hit.length, tenant)
        if leased is None:
            return None
        lease, anchor = leased
        row = Row(prompt, anchor)
        self.loans[row] = self.cache.borrow(lease)
        assert sum(self.loans[row].lenders.values()) == hit.length
        at = anchor
        for block in self.cache.pieces(lease, anchor):
            assert_kv(block.layers, prompt[at : at + block.length], at)
            at += block.length
        assert at == hit.length
        self.cache.adopt(lease, row)
        self.cache.commit(lease, row, prompt)
        self.running[row] = lease
        self.check()
        return row

    def hit(self, tokens) -> int:
        """How many of ``tokens`` the cache has for a prompt of these."""
        return self.cache.lookup(array("i", tokens)).length

    def lent(self, row: Row) -> int:
        """How many tokens the row borrows, after a look at every one of them."""
        at = 0
        for node in self.cache.lent(self.running[row], row.anchor):
            assert isinstance(node.payload, Block)
            assert_kv(node.payload.layers, row.tokens[at : node.end], at)
            at = node.end
        assert at == row.anchor
        return at

    def end(self, row: Row) -> None:
        lease = self.running.pop(row)
        self.cache.commit(lease, row, row.tokens)
        self.cache.release(lease, row)
        row.over = True
        self.check()

    def check(self) -> None:
        """The tree holds the right KV for its tokens, and no row's lease is lost."""
        self.cache.tree.check()
        leased = {id(n): 0 for n in self.cache.tree.walk()}
        for end in [lease.node for lease in self.running.values()] + self.cache.pinned:
            for node in end.path():
                leased[id(node)] += 1
        for node in self.cache.tree.walk():
            assert node.loans == leased[id(node)]
            if isinstance(node.payload, Resident):
                assert node.payload.holder in self.running
                layers = node.payload.holder.kv(node.start, node.end)
                assert (node.payload.start, node.payload.length) == (node.start, node.length)
            else:
                layers = node.payload.layers
                public = isinstance(node.payload, PublicBlock)
                assert public == (not node.users)
                assert node.payload.length == node.length
                assert node.payload.nbytes == (0 if public else node.length * TOKEN_BYTES)
            assert_kv(layers, node.key, node.start)


def assert_kv(layers, tokens, start: int) -> None:
    for found, expected in zip(layers, kv_of(tokens, start), strict=True):
        assert mx.array_equal(found.keys, expected.keys)
        assert mx.array_equal(found.values, expected.values)


def lend_all() -> Keeping:
    return Keeping(most=0)
