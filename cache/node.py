"""A node of the radix tree, as all may read it.

Owned by the engine thread. Written by the tree alone.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .radix import RadixTree


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
    ``users`` have used these tokens, the one that made them first; empty: they are everybody's.
    Who uses a node uses its parents. All is to be read by all and written by the tree alone.
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
        "tree",
        "users",
    )

    def __init__(
        self,
        tree: RadixTree,
        key: array[int],
        start: int,
        payload: Payload | None,
        parent: Node | None,
        serial: int,
    ) -> None:
        self.tree = tree
        self.users: tuple[str, ...] = ()
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

    @property
    def nbytes(self) -> int:
        """Bytes of payload and snapshot."""
        return self.snapshot_nbytes + (0 if self.payload is None else self.payload.nbytes)

    def give_up(self, user: str) -> int:
        """See ``RadixTree.give_up``."""
        return self.tree.give_up(self, user)

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
            f"used={self.last_used} children={len(self.children)} snapshot={self.snapshot_nbytes} "
            f"users={','.join(self.users)}>"
        )
