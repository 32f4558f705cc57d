"""Whose KV is given up: parts by weight, limits, and what one tenant's load does to another."""

from __future__ import annotations

import random
from array import array
from collections import deque
from dataclasses import dataclass

import pytest

from cache.node import Node
from cache.radix import RadixTree
from cache.shares import Claim, Ledger, Part, Shares


@dataclass(frozen=True)
class Bytes:
    nbytes: int


def put(tree: RadixTree, first: int, nbytes: int, user: str) -> Node:
    return tree.insert(tree.root, [first], Bytes(nbytes), user)


def evicted(tree: RadixTree, count: int) -> list[int]:
    """The first tokens of the next leaves that go."""
    order = []
    for _ in range(count):
        found = tree.shares.first()
        assert found is not None
        order.append(found[0].key[0])
        tree.shares.evict()
    return order


def test_one_tenant_alone_gives_up_what_it_used_least_recently():
    tree = RadixTree()
    nodes = [put(tree, i, nbytes, "a") for i, nbytes in enumerate((5, 90, 1))]
    tree.touch(nodes[0])
    assert evicted(tree, 3) == [1, 2, 0]
    assert tree.shares.evict() == -1


def test_who_takes_most_for_its_weight_gives_up_first():
    tree = RadixTree()
    tree.shares.configure({"a": Part(1.0), "b": Part(3.0)})
    for i in range(4):
        put(tree, i, 10, "a")
    for i in range(10, 20):
        put(tree, i, 10, "b")
    # 40 for a weight of 1 is more than 100 for one of 3; at 30 and 100 it is the other way round.
    assert evicted(tree, 1) == [0]
    assert evicted(tree, 1) == [10]
    while sum(tree.shares.charged().values()) > 40:
        tree.shares.evict()
    assert tree.shares.charged() == {"a": 10, "b": 30}


def test_a_tenant_of_whom_all_is_on_loan_is_passed_over():
    tree = RadixTree()
    tree.lock(put(tree, 1, 100, "a"))
    put(tree, 2, 1, "b")
    assert evicted(tree, 1) == [2]
    assert tree.shares.evict() == -1


def test_what_others_keep_stays_when_one_gives_it_up():
    tree = RadixTree()
    shared = put(tree, 1, 10, "a")
    tree.use(shared, "b")
    put(tree, 2, 10, "b")
    assert tree.shares.evict() == 0  # the older of b's leaves, which takes 15 of 20 bytes
    assert shared.users == ("a",)
    assert tree.shares.charged() == {"a": 10, "b": 10}
    assert evicted(tree, 2) == [1, 2]


def test_trees_with_the_same_shares_give_up_for_each_other():
    shares = Shares()
    one, other = (RadixTree(Ledger(shares)) for _ in range(2))
    put(one, 1, 10, "a")
    put(other, 1, 10, "a")
    put(other, 2, 10, "b")
    assert shares.evict() == 10
    assert (one.nodes, other.nodes) == (0, 2)
    assert (one.ledger.evicted_tokens, other.ledger.evicted_tokens) == (1, 0)
    one.check()
    other.check()


def test_above_its_limit_a_tenant_gives_up_its_own():
    tree = RadixTree()
    tree.shares.configure({"a": Part(most=25)})
    put(tree, 1, 10, "a")
    put(tree, 2, 10, "b")
    assert tree.shares.admit(("a",), 15)
    assert tree.nodes == 2
    assert tree.shares.admit(("a",), 20)
    assert tree.shares.charged() == {"b": 10}


def test_what_is_larger_than_the_limit_is_refused_and_nothing_is_given_up_for_it():
    tree = RadixTree()
    tree.shares.configure({"a": Part(most=25)})
    put(tree, 1, 10, "a")
    assert not tree.shares.admit(("a",), 26)
    assert tree.nodes == 1
    assert tree.shares.admit(("a", "b"), 26), "it is b's, too, who has no limit"


def test_what_is_on_loan_stays_above_a_limit_until_it_is_given_back():
    tree = RadixTree()
    held = put(tree, 1, 10, "a")
    tree.lock(held)
    tree.shares.configure({"a": Part(most=5)})
    assert tree.shares.charged() == {"a": 10}
    assert not tree.shares.admit(("a",), 1)
    tree.unlock(held)
    tree.shares.trim()
    assert tree.shares.charged() == {}


def test_a_lower_limit_holds_at_once():
    tree = RadixTree()
    for i in range(10):
        put(tree, i, 10, "a")
    tree.shares.configure({"a": Part(most=35)})
    assert tree.shares.charged() == {"a": 30}
    assert sorted(n.key[0] for n in tree.walk()) == [7, 8, 9]
    tree.shares.configure({})
    put(tree, 11, 10, "a")
    assert tree.shares.admit(("a",), 1000)
    assert tree.shares.charged() == {"a": 40}


class Load:
    """Prompts against a tree with a budget, as the engine would run them; counts the hits."""

    def __init__(self, budget: int) -> None:
        self.tree = RadixTree()
        self.budget = budget
        self.asked: dict[str, int] = {}
        self.found: dict[str, int] = {}

    def ask(self, tenant: str, prompt: array[int]) -> None:
        node, length = self.tree.match(prompt)
        if length < node.end:
            upper, lower = Bytes(length - node.start), Bytes(node.end - length)
            node = self.tree.split(node, length, upper, lower)
        self.asked[tenant] = self.asked.get(tenant, 0) + len(prompt)
        self.found[tenant] = self.found.get(tenant, 0) + length
        self.tree.lock(node)
        self.tree.use(node, tenant)
        if node is not self.tree.root:
            self.tree.touch(node)
        need = len(prompt) - length
        kept = not need or self.tree.shares.admit((tenant,), need)
        while kept and self.tree.nbytes + need > self.budget:
            kept = self.tree.shares.evict() >= 0
        if need and kept:
            self.tree.insert(node, prompt[length:], Bytes(need), tenant)
        self.tree.unlock(node)
        self.tree.shares.trim()

    def rate(self, tenant: str) -> float:
        return self.found[tenant] / self.asked[tenant]


def conversations(rng: random.Random, load: Load, scan: bool) -> None:
    """Tenant a's agents go on with long prefixes; b sends one long prompt after the other."""
    prefixes = [array("i", [i] * 500) for i in range(8)]
    fresh = iter(range(1000, 1 << 30))
    for _ in range(600):
        prompt = prefixes[rng.randrange(8)] + array("i", [next(fresh)] * 40)
        load.ask("a", prompt)
        if scan:
            for _ in range(3):
                load.ask("b", array("i", [next(fresh)] * 3000))


@pytest.mark.parametrize("seed", range(3))
def test_one_off_prompts_without_end_do_not_push_out_what_others_use(seed):
    alone, beside = Load(20_000), Load(20_000)
    conversations(random.Random(seed), alone, scan=False)
    conversations(random.Random(seed), beside, scan=True)
    assert alone.rate("a") > 0.85
    assert beside.rate("a") >= alone.rate("a") - 0.01
    assert beside.rate("b") == 0
    beside.tree.check()


def test_a_limit_holds_through_a_long_load():
    load = Load(20_000)
    load.tree.shares.configure({"b": Part(most=7000)})
    rng = random.Random(4)
    fresh = iter(range(1000, 1 << 30))
    most = 0
    for _ in range(500):
        load.ask("b", array("i", [next(fresh)] * rng.randint(100, 9000)))
        most = max(most, load.tree.shares.charged().get("b", 0))
    assert 5000 < most <= 7000


@pytest.mark.parametrize("seed", range(20))
def test_memory_is_divided_max_min_fairly(seed):
    """Whoever is below its part keeps all it has; the others are equal for their weights."""
    rng = random.Random(seed)
    tree, budget = RadixTree(), 10_000
    weights = {f"t{i}": rng.choice([0.5, 1.0, 2.0, 4.0]) for i in range(6)}
    tree.shares.configure({user: Part(weight) for user, weight in weights.items()})
    wanted = {user: rng.choice([300, 1000, 4000, 9000]) for user in weights}
    queue = deque(
        rng.sample([u for u in weights for _ in range(wanted[u] // 10)], sum(wanted.values()) // 10)
    )
    for i, user in enumerate(queue):
        while tree.nbytes + 10 > budget:
            tree.shares.evict()
        put(tree, i, 10, user)
    charged = tree.shares.charged()
    level = max(charged[u] / weights[u] for u in weights)
    for user in weights:
        if charged[user] < wanted[user]:
            assert charged[user] / weights[user] >= level - 20 / min(weights.values())


def test_a_claim_takes_nothing_from_who_would_have_less():
    tree = RadixTree()
    for i in range(10):
        put(tree, i, 10, "a")
    assert tree.shares.first(Claim("b", 90)) is not None
    assert tree.shares.first(Claim("b", 100)) is None
    assert tree.shares.first(Claim("b", 50, {"b": 50})) is None, "with what its rows hold"
    assert tree.shares.first(Claim("b", 100, {"a": 1})) is not None
    assert tree.shares.first(Claim("a", 1 << 40)) is not None, "its own"
    assert tree.shares.first(Claim(None, 1 << 40)) is not None
    tree.shares.configure({"b": Part(2.0)})
    assert tree.shares.first(Claim("b", 190)) is not None
    assert tree.shares.first(Claim("b", 200)) is None


def test_who_has_more_with_its_rows_gives_up_first():
    tree = RadixTree()
    put(tree, 1, 30, "a")
    put(tree, 2, 10, "b")
    rows = {"b": 25}
    assert tree.shares.first(Claim(rows=rows)) == (tree.match([2]).node, "b")
    assert tree.shares.evict(Claim("c", 5, rows)) == 10
    assert tree.shares.evict(Claim("c", 5, rows)) == 30
