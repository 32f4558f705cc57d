"""The eviction queue's own bookkeeping, which the tree's behaviour does not show."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from cache.leaf_queue import SLACK, LeafQueue


@dataclass(eq=False)
class Leaf:
    """A node as the queue sees it."""

    serial: int
    last_used: int
    loans: int = 0
    tree: object = None
    children: list[object] = field(default_factory=list)


@pytest.fixture
def queue() -> LeafQueue[Leaf]:
    return LeafQueue()


def test_a_node_has_one_entry_however_often_it_is_offered_used_and_lent(queue):
    leaf = Leaf(1, 1)
    for tick in range(1000):
        leaf.loans = 1
        leaf.last_used = tick + 1
        leaf.loans = 0
        queue.offer(leaf)
    assert queue.first() is leaf
    assert len(queue._heap) == 1


def test_entries_of_nodes_that_left_do_not_pile_up(queue):
    oldest = Leaf(0, 0)
    queue.offer(oldest)
    for serial in range(1, 1000):  # all newer than the first, which keeps them from the top
        leaf = Leaf(serial, serial)
        queue.offer(leaf)
        queue.forget(leaf)
        assert len(queue._heap) <= 2 + SLACK + 1
    assert queue.first() is oldest
    assert list(queue.problems([oldest])) == []


def test_a_node_that_is_forgotten_and_offered_again_has_one_entry(queue):
    oldest, leaf = Leaf(0, 0), Leaf(1, 1)
    queue.offer(oldest)
    queue.offer(leaf)
    for tick in range(2, 1000):  # one user gives it up and takes it up again
        queue.forget(leaf)
        leaf.last_used = tick
        queue.offer(leaf)
        assert list(queue.problems([oldest, leaf])) == []
    assert len(queue._heap) == 2
    queue.forget(oldest)
    assert queue.first() is leaf
    assert list(queue.problems([leaf])) == []


def test_what_is_no_candidate_is_not_queued(queue):
    queue.offer(Leaf(1, 1, loans=1))
    queue.offer(Leaf(2, 1, children=["child"]))
    queue.forget(Leaf(3, 1))
    assert queue.first() is None


def test_problems_are_told(queue):
    leaf, other = Leaf(1, 5), Leaf(2, 5)
    queue.offer(leaf)
    assert "not in the tree" in "".join(queue.problems([]))
    assert "is not queued" in "".join(queue.problems([leaf, other]))
    leaf.last_used = 4
    assert "later tick" in "".join(queue.problems([leaf]))
    queue._heap.clear()
    assert "the heap has" in "".join(queue.problems([leaf]))
