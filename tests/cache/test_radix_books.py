"""The books of the radix tree: bytes, snapshots, users, and what its check finds."""

from __future__ import annotations

import pytest

from cache.node import Node
from cache.radix import RadixTree

from .trees import Held, totals


def test_payloads_and_snapshots_are_accounted(forked):
    tree, stem, left, _ = forked
    payload = Held(1)
    tree.set_payload(left, payload)
    assert left.payload is payload
    assert totals(tree) == (3, 6, 41, 0)
    tree.set_snapshot(left, "one", 100)
    tree.set_snapshot(left, "two", 50)
    tree.set_snapshot(stem, "three", 7)
    assert (left.snapshot, left.snapshot_nbytes) == ("two", 50)
    assert totals(tree) == (3, 6, 98, 57)
    tree.drop_snapshot(left)
    tree.drop_snapshot(left)
    assert (left.snapshot, left.snapshot_nbytes) == (None, 0)
    assert totals(tree) == (3, 6, 48, 7)


def test_the_root_holds_nothing(tree):
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.set_payload(tree.root, Held(1))
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.set_snapshot(tree.root, "state", 1)
    with pytest.raises(AssertionError):
        tree.set_snapshot(tree.insert(tree.root, [1], Held(1)), None, 1)
    assert totals(tree) == (1, 1, 1, 0)


def test_snapshots_in_order_of_use(forked):
    tree, stem, left, right = forked
    for node in (right, left, stem):
        tree.set_snapshot(node, "state", 1)
    assert list(tree.lru_snapshots()) == [left, stem, right]
    tree.touch(left)
    assert list(tree.lru_snapshots()) == [right, stem, left]
    tree.lock(right)
    assert list(tree.lru_snapshots()) == [left]
    for node in tree.lru_snapshots():
        tree.drop_snapshot(node)
    assert tree.snapshot_nbytes == 2


def corrupt_totals(tree: RadixTree, stem: Node) -> None:
    tree.nbytes += 1


def corrupt_loans(tree: RadixTree, stem: Node) -> None:
    stem.children[4].loans = 1


def corrupt_recency(tree: RadixTree, stem: Node) -> None:
    stem.children[4].last_used = 100


def corrupt_position(tree: RadixTree, stem: Node) -> None:
    stem.children[6].start = 4


def corrupt_key(tree: RadixTree, stem: Node) -> None:
    stem.children[6].key[0] = 7


def corrupt_snapshot(tree: RadixTree, stem: Node) -> None:
    tree.set_snapshot(stem, "state", 4)
    stem.snapshot = None


def corrupt_leaf(tree: RadixTree, stem: Node) -> None:
    del stem.children[4]
    tree.nodes, tree.tokens, tree.nbytes = 2, 4, 40


def corrupt_root(tree: RadixTree, stem: Node) -> None:
    tree.root.loans = 1


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (corrupt_totals, "nbytes is 61 and should be 60"),
        (corrupt_loans, "fewer loans"),
        (corrupt_recency, "newer than its parent"),
        (corrupt_position, "does not continue its parent"),
        (corrupt_key, "does not continue its parent"),
        (corrupt_snapshot, "bytes of a snapshot"),
        (corrupt_leaf, "queued and not in the tree"),
        (corrupt_root, "root is not empty"),
    ],
)
def test_check_finds_what_is_wrong_and_shows_the_tree(forked, corrupt, message):
    tree, stem, _, _ = forked
    tree.check()
    corrupt(tree, stem)
    with pytest.raises(AssertionError, match=message) as caught:
        tree.check()
    assert "RadixTree nodes=" in str(caught.value)
    assert "[0, 3) 1,2,3" in str(caught.value)


def test_users_of_a_node_use_its_parents(forked):
    tree, stem, left, right = forked
    tree.use(left, "b")
    assert (stem.users, left.users, right.users) == (("default", "b"),) * 2 + (("default",),)
    grown = tree.insert(right, [7], Held(8), "c")
    assert grown.users == ("c",)
    assert right.users == ("default", "c")
    assert stem.users == ("default", "b", "c")
    tree.use(left, "b")
    tree.check()
    # 30 bytes by three, 20 by two, 10 by two, 8 for one
    assert tree.shares.charged() == {"default": 25, "b": 20, "c": 23}


def test_odd_bytes_are_charged_to_the_first_users(tree):
    node = tree.insert(tree.root, [1], Held(11), "a")
    for user in "bc":
        tree.use(node, user)
    assert tree.shares.charged() == {"a": 4, "b": 4, "c": 3}
    tree.set_snapshot(node, "state", 3)
    assert tree.shares.charged() == {"a": 5, "b": 5, "c": 4}
    tree.remove(node)
    assert tree.shares.charged() == {}


def test_parts_of_a_node_keep_its_users_and_are_joined_only_with_equal_ones(tree):
    node = tree.insert(tree.root, [1, 2, 3, 4], Held(40), "a")
    tree.use(node, "b")
    upper = tree.split(node, 2, Held(20), Held(20))
    assert upper.users == node.users == ("a", "b")
    tree.use(upper, "c")
    with pytest.raises(AssertionError, match="has other users"):
        tree.merge(node, Held(40))
    tree.use(node, "c")
    tree.merge(node, Held(40))
    assert node.users == ("a", "b", "c")
    assert tree.shares.charged() == {"a": 14, "b": 13, "c": 13}
    tree.check()


def test_a_leaf_goes_when_its_last_user_gives_it_up(forked):
    tree, stem, left, _ = forked
    tree.use(left, "b")
    with pytest.raises(AssertionError, match="has children"):
        stem.give_up("b")
    assert left.give_up("default") == 0
    assert left.users == ("b",)
    assert tree.shares.charged() == {"default": 15 + 10, "b": 15 + 20}
    with pytest.raises(AssertionError, match="does not use"):
        left.give_up("default")
    assert left.give_up("b") == 20
    assert left.parent is None
    assert tree.ledger.evicted_tokens == 2
    tree.check()


def test_what_is_everybodys_is_charged_to_nobody_and_never_goes(tree):
    node = tree.insert(tree.root, [1, 2], Held(0), None)
    tree.use(node, "a")
    assert node.users == ()
    assert tree.shares.first() is None
    below = tree.insert(node, [3], Held(5), "a")
    assert tree.shares.first() == (below, "a")
    tree.check()
    tree.remove(below)
    assert tree.shares.first() is None
    tree.remove(node)
    tree.check()
