"""A compressed radix tree over token sequences, as RadixAttention (SGLang) uses one for its cache.

Owned by the engine thread, no lock. Knows nothing of arrays, models or requests: what a node
holds is a payload with a size.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from .leaf_queue import LeafQueue
from .tokens import as_array, common_length


class Payload(Protocol):
    """What a node holds."""

    @property
    def nbytes(self) -> int:
        """Bytes this payload pins; constant as long as a node holds it."""
        ...


class Node:
    """An edge of the tree: the tokens at the absolute positions [start, end) and their payload.

    ``payload`` and ``parent`` are None only at the root and at nodes that left the tree.
    ``loans`` counts the locks on this node or below it; ``last_used`` is a tick of the tree's
    clock. ``snapshot`` is the state of layers that cannot be cut, valid exactly at ``end``.
    Everything is to be read by all and written by the tree alone.
    """

    __slots__ = (
        "children",
        "key",
        "last_used",
        "loans",
        "parent",
        "payload",
        "serial",
        "snapshot",
        "snapshot_nbytes",
        "start",
    )

    def __init__(
        self, key: array[int], start: int, payload: Payload | None, parent: Node | None, serial: int
    ) -> None:
        self.key = key
        self.start = start
        self.payload = payload
        self.parent = parent
        self.serial = serial
        self.children: dict[int, Node] = {}
        self.loans = 0
        self.last_used = 0
        self.snapshot: object | None = None
        self.snapshot_nbytes = 0

    @property
    def length(self) -> int:
        """Number of tokens on this edge."""
        return len(self.key)

    @property
    def end(self) -> int:
        """Absolute position after the last token of this edge."""
        return self.start + len(self.key)

    def path(self) -> list[Node]:
        """The nodes from the first below the root down to this one. O(depth)."""
        nodes = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def __repr__(self) -> str:
        head = ",".join(map(str, self.key[:4])) + (",..." if len(self.key) > 4 else "")
        return (
            f"<Node {self.serial} [{self.start}, {self.end}) {head} loans={self.loans} "
            f"used={self.last_used} children={len(self.children)} snapshot={self.snapshot_nbytes}>"
        )


class Match(NamedTuple):
    """The deepest node that a sequence reaches and how many of its tokens the tree has.

    ``node.start < length <= node.end``, or the root and 0.
    """

    node: Node
    length: int


class Clock:
    """Counts uses; trees whose nodes are compared by recency share one."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0

    def tick(self) -> int:
        """The next moment."""
        self.now += 1
        return self.now


class RadixTree:
    """Token sequences that share their common prefixes.

    ``nbytes`` counts payloads and snapshots, ``snapshot_nbytes`` the snapshots among them;
    ``tokens`` and ``nodes`` do not count the root. All four are kept up to date by each
    operation. An operation whose stated condition does not hold raises AssertionError.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.root = Node(array("i"), 0, None, None, 0)
        self.nbytes = 0
        self.snapshot_nbytes = 0
        self.tokens = 0
        self.nodes = 0
        self._clock = clock or Clock()
        self._serial = 0
        self._leaves: LeafQueue[Node] = LeafQueue()

    # Reading

    def match(self, tokens: Sequence[int]) -> Match:
        """How much of ``tokens`` the tree has; changes nothing, not even recency.

        O(matched tokens + depth), compared in C; other than an ``array('i')`` is copied to one.
        """
        wanted = as_array(tokens)
        node, pos = self.root, 0
        while pos < len(wanted) and (child := node.children.get(wanted[pos])) is not None:
            common = common_length(child.key, wanted, pos)
            node, pos = child, pos + common
            if common < len(child.key):
                break
        return Match(node, pos)

    def walk(self) -> Iterator[Node]:
        """All nodes but the root, parents first; the tree must not change meanwhile. O(nodes)."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    # Growing and reshaping

    def insert(self, parent: Node, tokens: Sequence[int], payload: Payload) -> Node:
        """A new child of ``parent``, most recently used, for the ``tokens`` after ``parent.end``.

        ``parent`` (which may be the root) has no child that begins with the same token.
        Runtime complexity: O(tokens + depth).
        """
        assert parent.parent is not None or parent is self.root, f"not in the tree: {parent}"
        key = array("i", tokens)
        assert key, "no tokens"
        assert key[0] not in parent.children, f"{parent} has a child that begins with {key[0]}"
        node = self._new(key, parent.end, payload, parent)
        self.tokens += len(key)
        self.nbytes += payload.nbytes
        self.touch(node)
        self._leaves.offer(node)
        return node

    def extend(self, node: Node, tokens: Sequence[int], payload: Payload) -> None:
        """Appends ``tokens`` to a node without children or snapshot, which becomes the newest.

        ``payload`` replaces the node's and holds all its tokens, old and new.
        Runtime complexity: amortised O(tokens + depth).
        """
        assert not node.children, f"{node} has children"
        assert node.snapshot is None, f"{node} has a snapshot"
        more = as_array(tokens)
        assert more, "no tokens"
        self.set_payload(node, payload)
        node.key.extend(more)
        self.tokens += len(more)
        self.touch(node)

    def split(self, node: Node, at: int, upper: Payload, lower: Payload) -> Node:
        """Cuts ``node`` at the absolute position ``at`` in (start, end); returns the upper part.

        The given object stays the lower part, with its children, its snapshot and the locks on
        it, so that who holds it holds all the tokens as before. Recency does not change.
        Runtime complexity: O(length).
        """
        cut, parent = at - node.start, node.parent
        assert parent is not None, f"not in the tree: {node}"
        assert 0 < cut < len(node.key), f"{at} is not inside {node}"
        above = self._new(node.key[:cut], node.start, upper, parent)
        above.loans, above.last_used = node.loans, node.last_used
        self.nbytes += upper.nbytes
        self.set_payload(node, lower)
        node.key = node.key[cut:]
        node.start, node.parent = at, above
        above.children[node.key[0]] = node
        return above

    def merge(self, node: Node, payload: Payload) -> None:
        """Takes the parent's tokens over into ``node``; the parent disappears, ``node`` survives.

        ``node`` is the only child of a parent that is not the root, has no snapshot and is locked
        only through ``node``. ``payload`` holds the tokens of both.
        Runtime complexity: amortised O(length).
        """
        parent = node.parent
        assert parent is not None, f"not in the tree: {node}"
        above = parent.parent
        assert above is not None, f"{node} is a child of the root"
        assert len(parent.children) == 1, f"{parent} has other children"
        assert parent.snapshot is None, f"{parent} has a snapshot"
        assert parent.loans == node.loans, f"{parent} is on loan itself"
        assert parent.payload is not None
        self.nbytes -= parent.payload.nbytes
        self.set_payload(node, payload)
        # Growing the parent's array keeps a chain merged chunk by chunk linear.
        parent.key.extend(node.key)
        node.key, node.start, node.last_used = parent.key, parent.start, parent.last_used
        node.parent = above
        above.children[node.key[0]] = node
        parent.key, parent.payload = array("i"), None
        parent.children.clear()
        self._leave(parent)

    def remove(self, node: Node) -> None:
        """Takes a leaf that is not on loan out; it keeps its payload. Amortised O(log nodes)."""
        parent = node.parent
        assert parent is not None, f"not in the tree: {node}"
        assert not node.children, f"{node} has children"
        assert node.loans == 0, f"{node} is on loan"
        assert node.payload is not None
        del parent.children[node.key[0]]
        self.tokens -= len(node.key)
        self.nbytes -= node.payload.nbytes + node.snapshot_nbytes
        self.snapshot_nbytes -= node.snapshot_nbytes
        self._leave(node)
        if parent is not self.root:
            self._leaves.offer(parent)

    # Payloads and snapshots

    def set_payload(self, node: Node, payload: Payload) -> None:
        """Swaps the payload of ``node`` for another of the same tokens. O(1)."""
        assert node.payload is not None and node.parent is not None, f"not in the tree: {node}"
        self.nbytes += payload.nbytes - node.payload.nbytes
        node.payload = payload

    def set_snapshot(self, node: Node, snapshot: object, nbytes: int) -> None:
        """Puts the state after ``node.end`` on ``node``, instead of one it may have. O(1)."""
        assert node.parent is not None, f"not in the tree: {node}"
        assert snapshot is not None and nbytes >= 0
        self.drop_snapshot(node)
        node.snapshot, node.snapshot_nbytes = snapshot, nbytes
        self.nbytes += nbytes
        self.snapshot_nbytes += nbytes

    def drop_snapshot(self, node: Node) -> None:
        """Drops the snapshot of ``node``; nothing happens where there is none. O(1)."""
        assert node.parent is not None or node is self.root, f"not in the tree: {node}"
        self.nbytes -= node.snapshot_nbytes
        self.snapshot_nbytes -= node.snapshot_nbytes
        node.snapshot, node.snapshot_nbytes = None, 0

    # Loans and recency

    def lock(self, node: Node) -> None:
        """One more loan of all the tokens down to ``node.end``. O(depth); nothing at the root."""
        assert node.parent is not None or node is self.root, f"not in the tree: {node}"
        while node.parent is not None:
            node.loans += 1
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Takes one ``lock`` of the same node back. O(depth + log nodes); nothing at the root."""
        assert node.parent is not None or node is self.root, f"not in the tree: {node}"
        held = node
        while held.parent is not None:
            assert held.loans > 0, f"{held} is not on loan"
            held.loans -= 1
            held = held.parent
        if node is not self.root:
            self._leaves.offer(node)

    def touch(self, node: Node) -> None:
        """Makes ``node`` and all its ancestors the most recently used, by one tick. O(depth)."""
        assert node.parent is not None or node is self.root, f"not in the tree: {node}"
        now = self._clock.tick()
        self.root.last_used = now
        while node.parent is not None:
            node.last_used = now
            node = node.parent

    # Eviction

    def evictable(self) -> Node | None:
        """The least recently used leaf that is not on loan, if any. Amortised O(log nodes)."""
        return self._leaves.first()

    def lru_leaves(self) -> Iterator[Node]:
        """The leaves that are not on loan, least recently used first.

        The tree may change meanwhile: a parent whose last child is removed comes in its turn.
        Until the iterator is exhausted, closed or dropped, ``evictable`` and other iterators do
        not see the leaves it has passed. Runtime complexity: amortised O(log nodes) a leaf.
        """
        return iter(self._leaves)

    def lru_snapshots(self) -> Iterator[Node]:
        """The nodes with a snapshot and no loan, least recently used first, as of the first step.

        Of equally recent ones the nearest to the root is first. O(nodes log nodes).
        """
        found = [n for n in self.walk() if n.snapshot is not None and n.loans == 0]
        yield from sorted(found, key=lambda n: (n.last_used, n.start))

    def _new(self, key: array[int], start: int, payload: Payload, parent: Node) -> Node:
        self._serial += 1
        node = Node(key, start, payload, parent, self._serial)
        parent.children[key[0]] = node
        self.nodes += 1
        return node

    def _leave(self, node: Node) -> None:
        """Forgets a node that nothing in the tree refers to any more."""
        node.parent = None
        self.nodes -= 1
        self._leaves.forget(node)

    # Self-check

    def dump(self) -> str:
        """The tree as indented text, one node a line, after one line of totals."""
        lines = [
            f"RadixTree nodes={self.nodes} tokens={self.tokens} nbytes={self.nbytes} "
            f"snapshot_nbytes={self.snapshot_nbytes} clock={self._clock.now}"
        ]
        lines += ["  " * len(node.path()) + repr(node) for node in self.walk()]
        return "\n".join(lines)

    def check(self) -> None:
        """Raises AssertionError, with a dump of the tree, where an invariant does not hold.

        Runtime complexity: O(nodes log nodes).
        """
        problems = [f"{node}: {p}" for node in self.walk() for p in self._node_problems(node)]
        problems += self._total_problems()
        if problems:
            raise AssertionError("\n".join([*problems, self.dump()]))

    def _node_problems(self, node: Node) -> Iterator[str]:
        parent = node.parent
        if parent is None or not node.key or node.payload is None:
            yield "has no parent, no tokens or no payload"
            return
        if parent.children.get(node.key[0]) is not node or parent.end != node.start:
            yield "does not continue its parent"
        if not parent.last_used >= node.last_used <= self._clock.now:
            yield "is newer than its parent or the clock"
        if node.loans < sum(child.loans for child in node.children.values()):
            yield "has fewer loans than its children"
        if node.snapshot is None and node.snapshot_nbytes:
            yield "has the bytes of a snapshot and none"

    def _total_problems(self) -> Iterator[str]:
        nodes = list(self.walk())
        snapshots = sum(n.snapshot_nbytes for n in nodes)
        payloads = sum(n.payload.nbytes for n in nodes if n.payload is not None)
        for name, value, found in (
            ("nodes", self.nodes, len(nodes)),
            ("tokens", self.tokens, sum(n.length for n in nodes)),
            ("snapshot_nbytes", self.snapshot_nbytes, snapshots),
            ("nbytes", self.nbytes, payloads + snapshots),
        ):
            if value != found:
                yield f"{name} is {value} and should be {found}"
        root = self.root
        if root.key or root.parent or root.payload or root.snapshot or root.loans:
            yield f"the root is not empty: {root}"
        yield from self._leaves.problems(nodes)
