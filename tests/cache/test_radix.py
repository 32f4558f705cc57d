"""Each operation of the radix tree on its own, and what it refuses."""

from __future__ import annotations

import weakref
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.radix import Match, RadixTree

from .trees import Held, evictable, leaves, totals


def test_an_empty_tree_matches_nothing(tree):
    assert tree.match([1, 2]) == Match(tree.root, 0)
    assert tree.match([]) == Match(tree.root, 0)
    assert evictable(tree) is None
    assert leaves(tree) == list(tree.lru_snapshots()) == list(tree.walk()) == []
    assert (tree.root.start, tree.root.end, tree.root.length) == (0, 0, 0)
    assert tree.root.path() == []
    assert totals(tree) == (0, 0, 0, 0)


def test_insert_links_and_accounts(forked):
    tree, stem, left, right = forked
    assert totals(tree) == (3, 6, 60, 0)
    assert (left.start, left.end, left.length) == (3, 5, 2)
    assert left.key == array("i", [4, 5])
    assert left.path() == [stem, left]
    assert stem.children == {4: left, 6: right}
    assert left.parent is right.parent is stem
    assert set(tree.walk()) == {stem, left, right}
    assert next(tree.walk()) is stem


@pytest.mark.parametrize(
    ("tokens", "name", "length"),
    [
        ([9], "root", 0),
        ([1], "stem", 1),
        ([1, 2, 9], "stem", 2),
        ([1, 2, 3], "stem", 3),
        ([1, 2, 3, 9], "stem", 3),
        ([1, 2, 3, 4], "left", 4),
        ([1, 2, 3, 4, 5, 6], "left", 5),
        ([1, 2, 3, 6, 6], "right", 4),
    ],
)
@pytest.mark.parametrize("kind", [list, tuple, lambda t: array("i", t), lambda t: array("q", t)])
def test_match(forked, tokens, name, length, kind):
    tree, stem, left, right = forked
    expected = {"root": tree.root, "stem": stem, "left": left, "right": right}[name]
    before = tree.dump()
    assert tree.match(kind(tokens)) == Match(expected, length)
    assert tree.dump() == before


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 300), st.sampled_from([0, 1, 70]))
def test_match_finds_the_first_difference(common, more, key, skip):
    tree = RadixTree()
    parent = tree.insert(tree.root, [7] * skip, Held(0)) if skip else tree.root
    node = tree.insert(parent, [1] * key, Held(0))
    found = tree.match([7] * skip + [1] * common + [2] * more)
    length = min(common, key)
    assert found == (Match(node, skip + length) if length else Match(parent, skip))


def test_insert_keeps_a_copy_of_the_tokens(tree):
    tokens = array("i", [1, 2])
    node = tree.insert(tree.root, tokens, Held(0))
    tokens[0] = 5
    tokens.append(6)
    assert list(node.key) == [1, 2]
    assert totals(tree) == (1, 2, 0, 0)


def test_insert_refuses_a_taken_first_token_and_no_tokens(forked):
    tree, stem, left, right = forked
    with pytest.raises(AssertionError, match="begins with 6"):
        tree.insert(stem, [6, 7], Held(0))
    with pytest.raises(AssertionError, match="no tokens"):
        tree.insert(left, [], Held(0))
    tree.remove(right)
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.insert(right, [1], Held(0))
    assert totals(tree) == (2, 5, 50, 0)


def test_extend(forked):
    tree, _, left, right = forked
    tree.lock(left)
    tree.extend(left, (7, 8), Held(40))
    assert list(left.key) == [4, 5, 7, 8]
    assert tree.match([1, 2, 3, 4, 5, 7, 8, 9]) == Match(left, 7)
    assert totals(tree) == (3, 8, 80, 0)
    assert left.last_used > right.last_used


def test_extend_refuses_children_snapshots_the_root_and_no_tokens(forked):
    tree, stem, left, right = forked
    with pytest.raises(AssertionError, match="has children"):
        tree.extend(stem, [1], Held(0))
    tree.set_snapshot(left, "state", 5)
    with pytest.raises(AssertionError, match="has a snapshot"):
        tree.extend(left, [1], Held(0))
    with pytest.raises(AssertionError, match="no tokens"):
        tree.extend(right, [], Held(0))
    with pytest.raises(AssertionError, match="not in the tree"):
        RadixTree().extend(RadixTree().root, [1], Held(0))
    assert totals(tree) == (3, 6, 65, 5)


def test_split_leaves_the_object_below(forked):
    tree, stem, left, right = forked
    tree.lock(stem)
    tree.lock(left)
    tree.set_snapshot(stem, "state", 5)
    upper, lower = Held(12), Held(19)
    above = tree.split(stem, 1, upper, lower)
    assert (above.start, above.end, list(above.key)) == (0, 1, [1])
    assert (stem.start, stem.end, list(stem.key)) == (1, 3, [2, 3])
    assert (above.payload, stem.payload) == (upper, lower)
    assert left.path() == [above, stem, left]
    assert (above.snapshot, stem.snapshot, stem.snapshot_nbytes) == (None, "state", 5)
    assert (above.loans, stem.loans, left.loans, right.loans) == (2, 2, 1, 0)
    assert above.last_used == stem.last_used
    assert totals(tree) == (4, 6, 66, 5)
    tree.unlock(stem)
    tree.unlock(left)
    assert above.loans == 0
    assert totals(tree) == (4, 6, 66, 5)


@pytest.mark.parametrize("at", [2, 3, 5, 6])
def test_split_refuses_what_is_not_inside(forked, at):
    tree, _, left, _ = forked
    with pytest.raises(AssertionError, match="not inside"):
        tree.split(left, at, Held(0), Held(0))
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.split(tree.root, at, Held(0), Held(0))
    assert totals(tree) == (3, 6, 60, 0)


def test_merge_is_the_inverse_of_split(forked):
    tree, stem, left, _ = forked
    tree.set_snapshot(left, "state", 5)
    tree.lock(left)
    above = tree.split(left, 4, Held(1), Held(2))
    whole = Held(20)
    tree.merge(left, whole)
    assert (left.start, left.end, list(left.key)) == (3, 5, [4, 5])
    assert left.payload is whole
    assert left.snapshot == "state"
    assert left.path() == [stem, left]
    assert above.parent is above.payload is None
    assert totals(tree) == (3, 6, 65, 5)
    tree.unlock(left)
    assert totals(tree) == (3, 6, 65, 5)


def test_merge_into_an_inner_node_takes_the_later_use_of_the_parent(forked):
    tree, _, left, right = forked
    tree.insert(left, [8], Held(1))
    tree.touch(right)
    tree.remove(right)
    tree.merge(left, Held(50))
    assert left.last_used == 5
    assert (left.start, left.end, left.parent) == (0, 5, tree.root)
    assert tree.root.children == {1: left}
    assert totals(tree) == (2, 6, 51, 0)


def test_merge_refuses_what_would_lose_something(forked):
    tree, stem, left, right = forked
    with pytest.raises(AssertionError, match="has other children"):
        tree.merge(left, Held(0))
    with pytest.raises(AssertionError, match="child of the root"):
        tree.merge(stem, Held(0))
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.merge(tree.root, Held(0))
    tree.remove(right)
    tree.set_snapshot(stem, "state", 1)
    with pytest.raises(AssertionError, match="has a snapshot"):
        tree.merge(left, Held(0))
    tree.drop_snapshot(stem)
    tree.lock(stem)
    with pytest.raises(AssertionError, match="on loan itself"):
        tree.merge(left, Held(0))
    assert totals(tree) == (2, 5, 50, 0)


def test_remove_gives_back_all_bytes(forked):
    tree, stem, left, right = forked
    tree.set_snapshot(left, "state", 7)
    assert totals(tree) == (3, 6, 67, 7)
    tree.remove(left)
    assert totals(tree) == (2, 4, 40, 0)
    assert left.parent is None
    assert left.snapshot == "state"
    tree.remove(right)
    tree.remove(stem)
    assert totals(tree) == (0, 0, 0, 0)


def test_remove_refuses_inner_lent_and_gone_nodes(forked):
    tree, stem, left, right = forked
    with pytest.raises(AssertionError, match="has children"):
        tree.remove(stem)
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.remove(tree.root)
    tree.lock(left)
    with pytest.raises(AssertionError, match="on loan"):
        tree.remove(left)
    tree.remove(right)
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.remove(right)
    assert totals(tree) == (2, 5, 50, 0)


def test_the_tree_lets_go_of_payloads_at_once(tree):
    old = tree.insert(tree.root, [1], Held(1))
    parent = tree.insert(tree.root, [2], Held(1))
    child = tree.insert(parent, [3], Held(1))
    fresh = tree.insert(tree.root, [4], Held(1))
    gone = [weakref.ref(node.payload) for node in (parent, child, fresh)]
    tree.merge(child, Held(1))
    tree.remove(fresh)  # not the next in line: its place in the queue stays taken for a while
    del fresh
    assert [ref() for ref in gone] == [None, None, None]
    assert evictable(tree) is old


def test_locks_count_up_to_the_root(forked):
    tree, stem, left, right = forked
    tree.lock(left)
    tree.lock(left)
    tree.lock(stem)
    tree.lock(tree.root)
    assert (tree.root.loans, stem.loans, left.loans, right.loans) == (0, 3, 2, 0)
    tree.unlock(left)
    tree.unlock(stem)
    tree.unlock(tree.root)
    assert (tree.root.loans, stem.loans, left.loans, right.loans) == (0, 1, 1, 0)
    tree.check()


def test_unlock_below_zero_changes_nothing(forked):
    tree, stem, left, right = forked
    tree.lock(left)
    with pytest.raises(AssertionError, match="not on loan"):
        tree.unlock(right)
    assert (stem.loans, left.loans, right.loans) == (1, 1, 0)
    tree.unlock(left)
    with pytest.raises(AssertionError, match="not on loan"):
        tree.unlock(left)
    tree.remove(left)
    for operation in (tree.lock, tree.unlock, tree.touch, tree.drop_snapshot):
        with pytest.raises(AssertionError, match="not in the tree"):
            operation(left)
    assert (stem.loans, left.loans, right.loans) == (0, 0, 0)


def test_leaves_go_least_recently_used_first(tree):
    a, b, c = (tree.insert(tree.root, [t], Held(1)) for t in range(3))
    assert evictable(tree) is a
    tree.touch(a)
    assert leaves(tree) == [b, c, a]
    tree.lock(b)
    assert leaves(tree) == [c, a]
    tree.unlock(b)  # giving back is no use: its place is as before
    assert leaves(tree) == [b, c, a]
    d = tree.insert(b, [9], Held(1))
    assert leaves(tree) == [c, a, d]
    tree.remove(d)
    assert leaves(tree) == [c, a, b]
    tree.check()


def test_a_use_spares_the_whole_path(forked):
    tree, stem, left, right = forked
    other = tree.insert(tree.root, [8], Held(1))
    tree.touch(left)
    order = []
    while (leaf := evictable(tree)) is not None:
        order.append(leaf)
        tree.remove(leaf)
        tree.check()
    assert order == [right, other, left, stem]

    tree.check()
