"""The order in which the leaves of trees are given up: least recently used first.

Owned by the engine thread. Knows of a node only its recency and what keeps it in the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

SLACK = 64  # dead entries that are not worth a rebuild


class Leaf(Protocol):
    """A node as the queue sees it; ``serial`` is unique and ``last_used`` never goes back."""

    serial: int
    last_used: int
    loans: int

    @property
    def tree(self) -> object:
        """Where it stands."""
        ...

    @property
    def children(self) -> Sized:
        """What lies below; a node is a leaf while this is empty."""
        ...


N = TypeVar("N", bound=Leaf)


class LeafQueue(Generic[N]):
    """A heap of the leaves that are not on loan, brought up to date when it is read.

    Every such leaf has one entry. A node that is used, lent or given a child keeps its entry as
    it is: the tick in it is then too low or its node no candidate, which is seen, and put right,
    when it comes to the top. So a request that touches or locks a leaf costs no heap operation.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []  # (tick, serial)
        self._queued: dict[int, N] = {}  # by serial; an entry that is not in it is dead

    def offer(self, node: N) -> None:
        """Queues ``node`` if it is a leaf, not on loan and not queued yet. O(log nodes)."""
        if node.children or node.loans or node.serial in self._queued:
            return
        self._queued[node.serial] = node
        heappush(self._heap, (node.last_used, node.serial))

    def forget(self, node: N) -> None:
        """Drops a node that left the tree, so that the queue pins nothing. Amortised O(1)."""
        if self._queued.pop(node.serial, None) is None:
            return
        if len(self._heap) > 2 * len(self._queued) + SLACK:
            self._heap = [entry for entry in self._heap if entry[1] in self._queued]
            heapify(self._heap)

    def first(self) -> N | None:
        """The least recently used candidate, None where there is none. Amortised O(log nodes)."""
        heap = self._heap
        while heap:
            tick, serial = heap[0]
            node = self._queued.get(serial)
            if node is None:
                heappop(heap)
            elif node.children or node.loans:
                heappop(heap)
                del self._queued[serial]
            elif node.last_used != tick:
                heappop(heap)
                heappush(heap, (node.last_used, serial))
            else:
                return node
        return None

    def problems(self, nodes: Sequence[N], tree: object = None) -> Iterator[str]:
        """What is wrong with the queue, where ``tree`` has ``nodes``; there may be other trees."""
        live = {node.serial: node for node in nodes}
        for serial, node in self._queued.items():
            if node.tree is tree and live.get(serial) is not node:
                yield f"{node} is queued and not in the tree"
        for node in nodes:
            if not (node.children or node.loans or node.serial in self._queued):
                yield f"{node} can be evicted and is not queued"
        entries = [entry for entry in self._heap if entry[1] in self._queued]
        if sorted(serial for _, serial in entries) != sorted(self._queued):
            yield f"the heap has {entries} for {sorted(self._queued)}"
        for tick, serial in entries:
            if tick > self._queued[serial].last_used:
                yield f"the entry of {self._queued[serial]} has the later tick {tick}"
