"""A compressed radix tree over token sequences, as RadixAttention (SGLang) uses one for its cache.

Owned by the engine thread, no lock. Knows nothing of arrays, models or requests: what a node
holds is a payload with a size, and who uses it are names.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .loan import NOBODY
from .node import Node, Payload
from .shares import Ledger
from .tokens import as_array, common_length


class Match(NamedTuple):
    """The deepest node that a sequence reaches and how many of its tokens the tree has.

    ``node.start < length <= node.end``, or the root and 0.
    """

    node: Node
    length: int


class RadixTree:
    """Token sequences that share their common prefixes.

    ``nbytes`` counts payloads and snapshots, ``snapshot_nbytes`` the snapshots among them;
    ``tokens`` and ``nodes`` do not count the root. All four are kept up to date by each
    operation, and so are the ``ledger`` and its shares, by which trees give up memory for each
    other; ``gave_up`` is called after each leaf that went for that. An operation whose stated
    condition does not hold raises AssertionError.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.root = Node(self, array("i"), 0, None, None, 0)
        self.ledger = ledger or Ledger()
        self.shares = self.ledger.shares
        self.gave_up: Callable[[], None] = _nothing
        self.nbytes = 0
        self.snapshot_nbytes = 0
        self.tokens = 0
        self.nodes = 0
        self._clock = self.shares.clock

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

    def walk(self, top: Node | None = None) -> Iterator[Node]:
        """All nodes from ``top`` (None: the root) down but for the root, parents first.

        The tree must not change meanwhile. O(nodes).
        """
        top = top or self.root
        stack = list(top.children.values()) if top is self.root else [top]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    # Growing and reshaping

    def insert(
        self, parent: Node, tokens: Sequence[int], payload: Payload, user: str | None = NOBODY
    ) -> Node:
        """A new child of ``parent``, most recently used, for the ``tokens`` after ``parent.end``.

        ``user`` has made it and uses the parents, too; None: it is everybody's and takes no bytes.
        ``parent`` (which may be the root) has no child that begins with the same token.
        Runtime complexity: O(tokens + depth).
        """
        assert parent.parent is not None or parent is self.root, f"not in the tree: {parent}"
        key = array("i", tokens)
        assert key, "no tokens"
        assert key[0] not in parent.children, f"{parent} has a child that begins with {key[0]}"
        node = self._new(key, parent.end, payload, parent)
        if user is not None:
            self.use(parent, user)
            node.users = (user,)
        self.tokens += len(key)
        self._count(node, 0, payload.nbytes)
        self.touch(node)
        self.shares.offer(node)
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
        above.loans, above.last_used, above.users = node.loans, node.last_used, node.users
        self._count(above, 0, upper.nbytes)
        self.set_payload(node, lower)
        node.key = node.key[cut:]
        node.start, node.parent = at, above
        above.children[node.key[0]] = node
        return above

    def merge(self, node: Node, payload: Payload) -> None:
        """Takes the parent's tokens over into ``node``; the parent disappears, ``node`` survives.

        ``node`` is the only child of a parent that is not the root, has no snapshot, is locked
        only through ``node`` and has the same users. ``payload`` holds the tokens of both.
        Runtime complexity: amortised O(length).
        """
        parent = node.parent
        assert parent is not None, f"not in the tree: {node}"
        above = parent.parent
        assert above is not None, f"{node} is a child of the root"
        assert len(parent.children) == 1, f"{parent} has other children"
        assert parent.snapshot is None, f"{parent} has a snapshot"
        assert parent.loans == node.loans, f"{parent} is on loan itself"
        assert parent.users == node.users, f"{parent} has other users"
        self._count(parent, parent.nbytes, 0)
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
        del parent.children[node.key[0]]
        self.tokens -= len(node.key)
        self._count(node, node.nbytes, 0)
        self.snapshot_nbytes -= node.snapshot_nbytes
        self._leave(node)
        if parent is not self.root:
            self.shares.offer(parent)

    # Payloads and snapshots

    def set_payload(self, node: Node, payload: Payload) -> None:
        """Swaps the payload of ``node`` for another of the same tokens. O(1)."""
        assert node.payload is not None and node.parent is not None, f"not in the tree: {node}"
        before, node.payload = node.nbytes, payload
        self._count(node, before, node.nbytes)

    def set_snapshot(self, node: Node, snapshot: object, nbytes: int) -> None:
        """Puts the state after ``node.end`` on ``node``, instead of one it may have. O(1)."""
        assert node.parent is not None, f"not in the tree: {node}"
        assert snapshot is not None and nbytes >= 0
        self.drop_snapshot(node)
        before, node.snapshot, node.snapshot_nbytes = node.nbytes, snapshot, nbytes
        self._count(node, before, node.nbytes)
        self.snapshot_nbytes += nbytes

    def drop_snapshot(self, node: Node) -> None:
        """Drops the snapshot of ``node``; nothing happens where there is none. O(1)."""
        assert node.parent is not None or node is self.root, f"not in the tree: {node}"
        before = node.nbytes
        self.snapshot_nbytes -= node.snapshot_nbytes
        node.snapshot, node.snapshot_nbytes = None, 0
        self._count(node, before, node.nbytes)

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
            self.shares.offer(node)

    def touch(self, node: Node) -> None:
        """Makes ``node`` and all its ancestors the most recently used, by one tick. O(depth)."""
        assert node.parent is not None or node is self.root, f"not in the tree: {node}"
        now = self._clock.tick()
        self.root.last_used = now
        while node.parent is not None:
            node.last_used = now
            node = node.parent

    # Users and eviction

    def use(self, node: Node, user: str) -> None:
        """From now on ``user`` uses all tokens down to ``node.end`` and is charged its part.

        Runtime complexity: O(nodes that are new to it times their users).
        """
        while node.parent is not None and node.users and user not in node.users:
            self._set_users(node, (*node.users, user))
            self.shares.offer(node)
            node = node.parent

    def give_up(self, node: Node, user: str) -> int:
        """``user`` keeps a leaf that is not on loan no longer; it goes when nobody else does.

        Returns the bytes freed. Amortised O(log nodes).
        """
        assert not node.children and not node.loans, f"{node} has children or is on loan"
        if len(node.users) > 1:
            self.shares.forget(node, user)
            self._set_users(node, tuple(u for u in node.users if u != user))
            return 0
        assert node.users == (user,), f"{user} does not use {node}"
        before = self.nbytes
        self.ledger.evicted_tokens += len(node.key)
        self.remove(node)
        freed = before - self.nbytes
        self.gave_up()
        return freed

    def lru_snapshots(self) -> Iterator[Node]:
        """The nodes with a snapshot and no loan, least recently used first, as of the first step.

        Of equally recent ones the nearest to the root is first. O(nodes log nodes).
        """
        found = [n for n in self.walk() if n.snapshot is not None and n.loans == 0]
        yield from sorted(found, key=lambda n: (n.last_used, n.start))

    def _new(self, key: array[int], start: int, payload: Payload, parent: Node) -> Node:
        node = Node(self, key, start, payload, parent, self._clock.serial())
        parent.children[key[0]] = node
        self.nodes += 1
        return node

    def _leave(self, node: Node) -> None:
        """Forgets a node that nothing in the tree refers to any more."""
        node.parent = None
        self.nodes -= 1
        self.shares.forget(node)

    def _count(self, node: Node, before: int, after: int) -> None:
        """The bytes of ``node`` were ``before`` and are ``after``."""
        self.nbytes += after - before
        self.ledger.nbytes += after - before
        self.shares.charge(node.users, before, after)

    def _set_users(self, node: Node, users: tuple[str, ...]) -> None:
        self._count(node, node.nbytes, 0)
        node.users = users
        self._count(node, 0, node.nbytes)

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
        if len(set(node.users)) < len(node.users) or (not node.users and node.nbytes):
            yield f"is used by {node.users} and takes {node.nbytes} bytes"
        if parent is not self.root and parent.users and not {*node.users} <= {*parent.users}:
            yield f"is used by {node.users}, its parent by {parent.users} only"
        if parent is not self.root and parent.users and not node.users:
            yield "is everybody's, and its parent is not"

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
        yield from self.shares.problems(self, nodes)


def _nothing() -> None:
    """Called where nobody listens."""
