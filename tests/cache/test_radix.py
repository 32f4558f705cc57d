"""Each operation of the radix tree on its own, and what it refuses."""

from __future__ import annotations

import weakref
from array import array
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.node import Node
from cache.radix import Match, RadixTree


@dataclass(frozen=True, eq=False)
class Held:
    """A payload that is nothing but a size."""

    nbytes: int


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree()


@pytest.fixture
def forked(tree) -> tuple[RadixTree, Node, Node, Node]:
    """[1, 2, 3] with the continuations [4, 5] and [6]; the first is the older."""
    stem = tree.insert(tree.root, [1, 2, 3], Held(30))
    left = tree.insert(stem, [4, 5], Held(20))
    right = tree.insert(stem, [6], Held(10))
    return tree, stem, left, right


def evictable(tree: RadixTree) -> Node | None:
    found = tree.shares.first()
    return None if found is None else found[0]


def leaves(tree: RadixTree) -> list[Node]:
    """Those that are not on loan, in the order in which they go."""
    found = [n for n in tree.walk() if not (n.children or n.loans)]
    found.sort(key=lambda n: n.last_used)
    assert evictable(tree) is (found[0] if found else None)
    return found


def totals(tree: RadixTree) -> tuple[int, int, int, int]:
    tree.check()
    return tree.nodes, tree.tokens, tree.nbytes, tree.snapshot_nbytes


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
