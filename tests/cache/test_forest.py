"""Prefix caches of several namespaces that share memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import pytest

from cache.forest import Forest
from cache.leaf_queue import LeafQueue
from cache.namespace import Namespace
from cache.prefix_cache import PrefixCache
from cache.radix import RadixTree

ONE, TWO, THREE = (Namespace("m", adapter) for adapter in ("", "x", "y"))


@dataclass
class Bytes:
    nbytes: int


def forest() -> Forest:
    return Forest(
        lambda ledger: PrefixCache(reserve=lambda size, tenant: True, tree=RadixTree(ledger))
    )


def put(cache: PrefixCache, first: int, nbytes: int = 10):
    return cache.tree.insert(cache.tree.root, [first, first + 1], Bytes(nbytes))


def test_namespaces_do_not_see_each_other():
    made = forest()
    put(made.of(ONE), 5)
    assert made.of(ONE).lookup(array("i", [5, 6, 7])).length == 2
    assert made.of(TWO).lookup(array("i", [5, 6, 7])).length == 0
    assert made.of(ONE) is made.of(ONE)


def test_the_least_recently_used_of_all_is_given_up_first():
    made = forest()
    first = put(made.of(ONE), 1, 1)
    put(made.of(TWO), 1, 2)
    put(made.of(THREE), 1, 4)
    put(made.of(TWO), 5, 8)
    made.of(ONE).tree.touch(first)
    assert [made.evict() for _ in range(5)] == [2, 4, 8, 1, -1]
    assert made.evicted_tokens == 8


def test_what_is_on_loan_stays():
    made = forest()
    held = put(made.of(ONE), 1)
    made.of(ONE).tree.lock(held)
    put(made.of(TWO), 1)
    assert made.evict() == 10
    assert made.evict() == -1
    assert made.of(ONE).tree.nodes == 1


def test_a_dropped_namespace_starts_empty_again():
    made = forest()
    put(made.of(ONE), 1, 3)
    put(made.of(TWO), 1, 4)
    made.drop(lambda name: name in (ONE, THREE))
    assert made.nbytes == 4
    assert made.evicted_tokens == 2
    assert made.of(ONE).lookup(array("i", [1, 2, 3])).length == 0


def test_sizes_are_added_up():
    made = forest()
    assert (made.nbytes, made.lent) == (0, 0)
    put(made.of(ONE), 1, 3)
    held = put(made.of(TWO), 1, 4)
    assert (made.nbytes, made.lent) == (7, 0)
    lease, _ = made.of(TWO).lend(array("i", [1, 2, 0]), 2)
    assert (made.nbytes, made.lent) == (7, 4)
    made.of(TWO).cancel(lease)
    assert held.loans == made.lent == 0


def domain(number: int) -> Namespace:
    return Namespace("m", domain=f"salt {number}")


def run(made: Forest, name: Namespace, first: int) -> None:
    """A row's life on a cache, without its KV."""
    lease, _ = made.of(name).lend(array("i", [first, first + 1, 0]), 0)
    put(made.of(name), first)
    made.of(name).cancel(lease)


def test_a_domain_with_nothing_left_is_forgotten():
    made = forest()
    run(made, ONE, 1)
    run(made, TWO, 1)
    assert len(made) == 2
    made.evict()
    assert [made.find(name) is None for name in (ONE, TWO)] == [True, False]
    assert made.evicted_tokens == 2


def test_a_domain_with_a_lease_stays_and_goes_with_it():
    made = forest()
    cache = made.of(ONE)
    lease, _ = cache.lend(array("i", [1, 2]), 0)
    put(cache, 1)
    made.evict()
    assert made.of(ONE) is cache
    cache.cancel(lease)
    assert len(made) == 0


def test_looking_for_a_domain_makes_none():
    made = forest()
    assert made.find(ONE) is None
    assert len(made) == 0


def test_ten_thousand_salts_leave_what_fits_and_cost_nothing_each():
    """Counted in looks at leaves: the work of an eviction does not grow with the domains."""
    made = forest()
    looks = 0

    def first(queue, look=LeafQueue.first):
        nonlocal looks
        looks += 1
        return look(queue)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LeafQueue, "first", first)
        for number in range(10_000):
            while made.nbytes >= 1000:
                made.evict()
            run(made, domain(number), 1)
    assert (len(made), made.nbytes) == (100, 1000)
    assert made.evicted_tokens == 2 * 9_900
    assert looks <= 2 * 9_900
    assert {name for name in map(domain, range(9_900, 10_000)) if made.find(name)} == {
        domain(number) for number in range(9_900, 10_000)
    }
