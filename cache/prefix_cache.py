"""The shared prefix cache of one namespace: match, lend, commit, release, evict.

KV exists once: in a block of the tree, or in the tail of the row that computed it, where the
tree points at it. Owned by the engine thread. Knows nothing of models or of scheduling.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from .block import Block, Holder, Resident
from .keeping import Keeping, adoptable
from .lease import NO_HIT, Hit, Lease, owed
from .loan import NOBODY, Loan
from .node import Node
from .public import copied, rejoin, unforked
from .radix import RadixTree

Reserve = Callable[[int, str | None], bool]
"""Makes room for so many more bytes, by eviction if need be; False where it cannot.

With a tenant it takes nothing from others who need it more."""


class Stats(NamedTuple):
    """Sizes of the cache; ``lent`` bytes are borrowed by at least one row."""

    tokens: int
    nodes: int
    nbytes: int
    lent: int
    snapshot_nbytes: int


@dataclass(eq=False, slots=True)
class PrefixCache:
    """Facade over one radix tree.

    ``stateful`` marks a model with layers whose state cannot be cut: a hit then ends at a
    snapshot. ``copying`` marks one whose rows copy all they borrow (anchor 0) and keep nothing
    for the tree. ``reserve`` is asked before any bytes are allocated. ``idle`` is called when
    nothing is cached or on loan any more, but for what is public.
    """

    reserve: Reserve
    stateful: bool = False
    copying: bool = False
    enabled: bool = True
    keeping: Keeping = field(default_factory=Keeping)
    tree: RadixTree = field(default_factory=RadixTree)
    leases: set[Lease] = field(default_factory=set)
    pinned: list[Node] = field(default_factory=list)
    idle: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.tree.gave_up = self._settle

    @property
    def evicted_tokens(self) -> int:
        """Tokens given up so far, in all trees of the ledger."""
        return self.tree.ledger.evicted_tokens

    def lookup(self, prompt: array[int]) -> Hit:
        """What can be reused of ``prompt``: at most all but its last token. Changes nothing."""
        if not self.enabled:
            return NO_HIT
        node, length = self.tree.match(prompt[: len(prompt) - 1])
        if not self.stateful:
            return Hit(length, length if node.end == length else node.start, length, None)
        deepest: Node | None = node
        while deepest is not None and (deepest.snapshot is None or deepest.end > length):
            deepest = deepest.parent
        if deepest is None:
            return NO_HIT._replace(kv_length=length)
        return Hit(deepest.end, deepest.end, length, deepest.snapshot)

    def lend(
        self, prompt: array[int], length: int, tenant: str = NOBODY
    ) -> tuple[Lease, int] | None:
        """Holds the first ``length`` tokens of ``prompt``, which must match, for a ``tenant``.

        Returns the lease and the anchor up to which they stay lent: what lies between anchor
        and ``length`` is not worth lending, and the row is expected to ``adopt`` it. ``None``
        where there is no memory to cut a block or to take one out of another row.
        """
        # From here on it is not idle, whatever is evicted on the way.
        lease = Lease(self.tree.root, tenant)
        self.leases.add(lease)
        if not length:
            return lease, 0
        node = self._fork(prompt, length, tenant)
        if node is None:
            self.cancel(lease)
            return None
        self._move_lock(lease, node)
        path = node.path()
        kept = len(path) if self.copying else adoptable(path, self.keeping)
        if not self._materialise(path if self.copying else path[: len(path) - kept]):
            self.cancel(lease)
            return None
        self.tree.touch(node)
        return lease, path[-1 - kept].end if kept < len(path) else 0

    def borrow(self, lease: Lease) -> Loan:
        """The row has started: its tenant uses what it was lent. What it owes to whom."""
        loan = owed(lease.node.path(), lease.tenant)
        self.tree.use(lease.node, lease.tenant)
        return loan

    def cancel(self, lease: Lease) -> None:
        """Ends a lease whose row was not started after all."""
        self.tree.unlock(self._end(lease))
        self._settle()

    def adopt(self, lease: Lease, holder: Holder) -> None:
        """The row has copied what follows its anchor: blocks nobody else uses are dropped."""
        node = lease.node
        if self.copying:
            return
        while node.start >= holder.anchor and node.parent is not None:
            if node.loans == 1:
                self.tree.set_payload(node, Resident(holder, node.start, node.length))
            node = node.parent

    def pieces(self, lease: Lease, start: int) -> Iterator[Block]:
        """The blocks of the leased path from position ``start`` (a node's border) on."""
        for node in lease.node.path():
            if node.start >= start:
                assert isinstance(node.payload, Block)
                yield node.payload

    def lent(self, lease: Lease, anchor: int) -> list[Node]:
        """The nodes of the leased path that lie before ``anchor``."""
        return [n for n in lease.node.path() if n.end <= anchor]

    def commit(self, lease: Lease, holder: Holder, tokens: array[int]) -> bool:
        """Puts the KV of ``tokens`` (all of the row so far) into the tree, without a copy.

        What the tree has of them already is the tenant's, too: its row has computed it itself.
        False where memory to cut a block was lacking; nothing has changed then.
        """
        node = lease.node
        lease.holder = holder
        if not self.enabled or node.end >= len(tokens):
            return True
        if self._extendable(lease):
            grown = Resident(holder, node.start, len(tokens) - node.start)
            self.tree.extend(node, tokens[node.end :], grown)
            return True
        matched = self.tree.match(tokens).length
        parent = self._fork(tokens, matched, lease.tenant) if matched else self.tree.root
        if parent is None:
            return False
        if matched < len(tokens):
            rest = Resident(holder, matched, len(tokens) - matched)
            parent = self.tree.insert(parent, tokens[matched:], rest, lease.tenant)
        self.tree.use(parent, lease.tenant)
        self._move_lock(lease, parent)
        if self.copying and isinstance(parent.payload, Resident):
            return self._copy_out(parent)
        return True

    def share(self, lease: Lease, holder: Holder) -> None:
        """Lets the row borrow what it computed although the tree had it from another row.

        That happens where a state was missing, or where two rows computed the same at one time.
        """
        for other in {
            n.payload.holder for n in lease.node.path() if isinstance(n.payload, Resident)
        }:
            if other is not holder:
                self._chains(lease.node, other)
        path = list(takewhile(lambda n: not _held_by(n, holder), lease.node.path()))
        worth = bool(path) and path[-1].end - holder.anchor > self.keeping.most
        if worth and not self.copying and self._materialise(path):
            holder.rehome(path[-1].end)

    def wants_snapshot(self, lease: Lease, end: int) -> bool:
        """Whether the leased path ends after exactly ``end`` tokens and has no state there.

        A public prompt has those that it was published with: others could never be evicted.
        """
        node = lease.node
        return self.enabled and node.end == end > 0 and node.snapshot is None and bool(node.users)

    def admits(self, lease: Lease, nbytes: int) -> bool:
        """Whether the lease's tenant may keep so much more; own leaves may have to go for it."""
        return self.tree.shares.admit((lease.tenant,), nbytes)

    def snapshot(self, lease: Lease, end: int, state: object, nbytes: int) -> None:
        """Keeps ``state``, valid after exactly ``end`` tokens, where ``wants_snapshot``."""
        assert self.wants_snapshot(lease, end)
        self.tree.set_snapshot(lease.node, state, nbytes)

    def release(self, lease: Lease, holder: Holder) -> None:
        """Ends the lease: what lies in the row's tail becomes blocks, as far as memory allows."""
        assert lease.live
        if lease.node is not self.tree.root:
            self._store(lease, holder)
            self.tree.shares.trim()
        self._end(lease)
        self._settle()

    def _store(self, lease: Lease, holder: Holder) -> None:
        """Unlocks the lease's node, after what the row has there was copied out of its tail."""
        node = lease.node
        self.tree.touch(node)
        for resident in self._chains(node, holder):
            if not self._copy_out(resident):
                break
        path = node.path()
        self.tree.unlock(node)
        self._drop_residents(path, holder)
        rejoin(self.tree, path, [each.holder for each in self.leases if each is not lease])

    def evict(self) -> int:
        """Lets go of one leaf of the trees that share memory; see ``Shares.evict``."""
        # A snapshot that is not on loan lies above such a leaf.
        return self.tree.shares.evict()

    def clear(self) -> None:
        """Drops everything that is not on loan."""
        self._drop_below(self.tree.root)
        self._settle()

    # what is public

    def pin(self, tokens: array[int]) -> bool:
        """Holds ``tokens``, which must match, for ever; False where memory is lacking for a cut."""
        node = self._fork(tokens, len(tokens), None)
        if node is not None:
            self.tree.lock(node)
            self.pinned.append(node)
        return node is not None

    def seed(self, public: PrefixCache) -> None:
        """Puts into this cache, which is empty, all that ``public`` has, without a second copy.

        It stays as long as the cache does; ``public`` holds the memory, and must stay as long.
        """
        for leaf in copied(public.tree, self.tree):
            self.tree.lock(leaf)
            self.pinned.append(leaf)

    def close(self) -> None:
        """Drops everything, the public prompts included; no lease is left."""
        assert not self.leases, "something is on loan"
        self.idle = lambda: None
        for node in self.pinned:
            self.tree.unlock(node)
        self.pinned.clear()
        self.clear()
        assert not self.tree.nodes

    def _settle(self) -> None:
        if not (self.leases or self.tree.nbytes):
            self.idle()

    def stats(self) -> Stats:
        """Sizes, by a walk over the tree."""
        lent = sum(n.payload.nbytes for n in self.tree.walk() if n.loans and n.payload)
        tree = self.tree
        return Stats(tree.tokens, tree.nodes, tree.nbytes, lent, tree.snapshot_nbytes)

    def _fork(self, tokens: array[int], length: int, tenant: str | None) -> Node | None:
        """The node that ends after ``length`` matching tokens, made by a split if need be."""
        node, matched = self.tree.match(tokens[:length])
        assert matched == length
        if node.end == length:
            return node
        payload = node.payload
        assert isinstance(payload, Block | Resident)
        if payload.nbytes:
            self.tree.lock(node)  # making room must not evict what is about to be cut
            fits = self.reserve(payload.nbytes, tenant)
            self.tree.unlock(node)
            if not fits:
                return None
        upper, lower = payload.split(length - node.start)
        return self.tree.split(node, length, upper, lower)

    def _materialise(self, path: Sequence[Node]) -> bool:
        """Makes nodes that point into rows' tails blocks of their own; those rows borrow too."""
        residents = [n for n in path if isinstance(n.payload, Resident)]
        if not self.reserve(sum(self._block_bytes(n) for n in residents), None):
            return False
        ends: dict[Holder, int] = {}
        for node in residents:
            assert isinstance(node.payload, Resident)
            ends[node.payload.holder] = node.end
            self.tree.set_payload(node, node.payload.block())
        for holder, end in ends.items():
            holder.rehome(end)
        return True

    def _block_bytes(self, node: Node) -> int:
        payload = node.payload
        if not isinstance(payload, Resident):
            return 0
        views = payload.holder.kv(payload.start, payload.start + payload.length)
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in views)

    def _extendable(self, lease: Lease) -> bool:
        node, holder = lease.node, lease.holder
        # A second lease may be that of a row that computed the same and goes on otherwise.
        alone = node.loans == 1 and not node.children and node.users == (lease.tenant,)
        return alone and _held_by(node, holder) and node.snapshot is None

    def _end(self, lease: Lease) -> Node:
        """The node that the lease held; the lock on it is the caller's."""
        assert lease.live
        node = lease.node
        # A row that somebody still knows must keep neither itself nor evicted blocks alive.
        lease.live, lease.holder, lease.node = False, None, self.tree.root
        self.leases.discard(lease)
        return node

    def _move_lock(self, lease: Lease, node: Node) -> None:
        self.tree.lock(node)
        if lease.node is not self.tree.root:
            self.tree.unlock(lease.node)
        lease.node = node

    def _chains(self, node: Node, holder: Holder) -> list[Node]:
        """Merges the row's unforked resident nodes; those that are left, from the top down."""
        left = []
        current: Node | None = node
        while current is not None and current.parent is not None:
            if not _held_by(current, holder):
                current = current.parent
                continue
            while self._mergeable(current, holder):
                upper = current.parent
                assert upper is not None
                whole = Resident(holder, upper.start, current.end - upper.start)
                self.tree.merge(current, whole)
            left.append(current)
            current = current.parent
        return left[::-1]

    def _mergeable(self, node: Node, holder: Holder) -> bool:
        upper = node.parent
        return upper is not None and _held_by(upper, holder) and unforked(upper, node)

    def _copy_out(self, node: Node) -> bool:
        assert isinstance(node.payload, Resident)
        size = self._block_bytes(node)
        # One tenant's alone is not kept at the cost of others, who need what they have more.
        tenant = node.users[0] if len(node.users) == 1 else None
        if not (self.tree.shares.admit(node.users, size) and self.reserve(size, tenant)):
            return False
        block = node.payload.block()
        self.tree.set_payload(node, block)
        self._merge_up(node)
        return True

    def _merge_up(self, node: Node) -> None:
        """Joins a block with an unforked one before it, if that at most doubles the copying."""
        while (upper := node.parent) is not None and isinstance(upper.payload, Block):
            assert isinstance(node.payload, Block)
            if not unforked(upper, node) or upper.length > node.length:
                return
            if not self.reserve(upper.payload.nbytes + node.payload.nbytes, None):
                return
            self.tree.merge(node, Block.concat([upper.payload, node.payload]))

    def _drop_residents(self, path: Sequence[Node], holder: Holder) -> None:
        """Removes what could not be copied out, with all that hangs below it."""
        for node in path:
            if _held_by(node, holder):
                if not node.loans:
                    self._drop_below(node)
                    return
                heir = self._heir(node, holder)
                self.tree.set_payload(node, Resident(heir, node.start, node.length))

    def _heir(self, node: Node, holder: Holder) -> Holder:
        """Another row that computed the same tokens at the same time and still keeps them."""
        for lease in self.leases:
            other = lease.holder
            if other is not None and other is not holder and node in lease.node.path():
                assert other.anchor <= node.start
                return other
        raise AssertionError("a row borrows from a tail that ends")

    def _drop_below(self, top: Node) -> None:
        """Removes what is not on loan, from ``top`` (left alone if it is the root) downwards."""
        for node in reversed(list(self.tree.walk(top))):  # parents last
            if not node.loans:
                self.tree.ledger.evicted_tokens += node.length if node.users else 0
                self.tree.remove(node)


def _held_by(node: Node, holder: Holder | None) -> bool:
    return isinstance(node.payload, Resident) and node.payload.holder is holder
