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
        self._heap: list[tuple[int, int]] = []  # (tick, serial), one entry a serial
        self._queued: dict[int, N] = {}  # by serial
        self._dead: set[int] = set()  # serials of the entries that are not queued

    def offer(self, node: N) -> None:
        """Queues ``node`` if it is a leaf, not on loan and not queued yet. O(log nodes)."""
        if node.children or node.loans or node.serial in self._queued:
            return
        self._queued[node.serial] = node
        if node.serial in self._dead:
            self._dead.remove(node.serial)  # the old entry serves: its tick is at most too low
        else:
            heappush(self._heap, (node.last_used, node.serial))

    def forget(self, node: N) -> None:
        """Drops a node that its user keeps no longer; the queue pins nothing. Amortised O(1)."""
        if self._queued.pop(node.serial, None) is None:
            return
        self._dead.add(node.serial)
        if len(self._dead) > len(self._queued) + SLACK:
            self._heap = [entry for entry in self._heap if entry[1] in self._queued]
            heapify(self._heap)
            self._dead.clear()

    def first(self) -> N | None:
        """The least recently used candidate, None where there is none. Amortised O(log nodes)."""
        heap = self._heap
        while heap:
            tick, serial = heap[0]
            node = self._queued.get(serial)
            if node is None:
                heappop(heap)
                self._dead.remove(serial)
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
        if sorted(serial for _, serial in self._heap) != sorted([*self._queued, *self._dead]):
            yield f"the heap has {self._heap} for {sorted(self._queued)}, dead {self._dead}"
        entries = [entry for entry in self._heap if entry[1] in self._queued]
        for tick, serial in entries:
            if tick > self._queued[serial].last_used:
                yield f"the entry of {self._queued[serial]} has the later tick {tick}"
