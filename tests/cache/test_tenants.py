"""Who used what in the cache of one namespace, what that costs whom, and limits of tenants."""

from __future__ import annotations

import random

import pytest

from cache.keeping import Keeping
from cache.loan import Loan, Share
from cache.shares import Part

from .bench import TOKEN_BYTES, Bench, lend_all


def charged(bench: Bench) -> dict[str, float]:
    """In tokens."""
    return {user: n / TOKEN_BYTES for user, n in bench.cache.tree.shares.charged().items()}


def test_a_loan_tells_who_computed_it_and_who_has_paid():
    bench = Bench(keeping=lend_all())
    bench.end(bench.start(range(100), "ann"))
    bob = bench.start([*range(60), *range(500, 540)], "bob")
    assert bench.loans[bob] == Loan({"ann": 60}, (Share(60, ("ann",)),))
    bench.end(bob)
    eve = bench.start([*range(60), *range(500, 540), 900], "eve")
    assert bench.loans[eve] == Loan(
        {"ann": 60, "bob": 40}, (Share(60, ("ann", "bob")), Share(40, ("bob",)))
    )
    bench.end(eve)
    again = bench.start([*range(60), *range(500, 540), 901], "bob")
    assert bench.loans[again] == Loan({"ann": 60, "bob": 40}, ())
    bench.end(again)


def test_a_row_that_was_not_started_leaves_no_user_behind():
    bench = Bench(keeping=lend_all())
    bench.end(bench.start(range(50), "ann"))
    row = bench.start([*range(50), 900], "bob")
    assert bench.loans[row].shares
    prompt = row.tokens
    bench.end(row)
    lease, _ = bench.cache.lend(prompt, 50, "eve")
    bench.cache.cancel(lease)
    assert bench.cache.tree.match(prompt[:50]).node.users == ("ann", "bob")


def test_memory_is_charged_to_the_users_in_equal_parts():
    bench = Bench(keeping=lend_all())
    first = bench.start(range(100), "ann")
    assert charged(bench) == {}, "it lies in the row's tail"
    second = bench.start([*range(100), *range(500, 520)], "bob")
    assert charged(bench) == {"ann": 50, "bob": 50}
    bench.end(first)
    bench.end(second)
    assert charged(bench) == {"ann": 50, "bob": 70}


def test_turns_of_one_tenant_become_one_node_and_those_of_others_do_not():
    bench = Bench()
    text = list(range(20))
    for tenant in ("ann", "ann", "bob", "bob", "bob", "ann"):
        bench.end(bench.start(text, tenant))
        text += range(1000 + len(text), 1020 + len(text))
    nodes = sorted(bench.cache.tree.walk(), key=lambda n: n.start)
    assert [(n.end, n.users) for n in nodes] == [
        (40, ("ann", "bob")),
        (100, ("bob", "ann")),
        (120, ("ann",)),
    ]


def test_new_kv_of_a_tenant_at_its_limit_replaces_its_own():
    bench = Bench()
    bench.cache.tree.shares.configure({"bob": Part(most=100 * TOKEN_BYTES)})
    bench.end(bench.start(range(80), "ann"))
    for base in (1000, 2000, 3000):
        bench.end(bench.start(range(base, base + 60), "bob"))
        assert charged(bench) == {"ann": 80, "bob": 60}
    assert bench.hit([*range(3000, 3060), 1]) == 60
    bench.end(bench.start(range(4000, 4200), "bob"))  # larger than all it may keep
    assert bench.hit([*range(4000, 4200), 1]) == 0
    assert bench.hit([*range(3000, 3060), 1]) == 60
    assert charged(bench) == {"ann": 80, "bob": 60}


def test_a_limit_takes_nothing_from_those_who_share():
    bench = Bench(keeping=lend_all())
    bench.cache.tree.shares.configure({"bob": Part(most=10 * TOKEN_BYTES)})
    bench.end(bench.start(range(100), "ann"))
    bob = bench.start([*range(100), *range(500, 530)], "bob")
    assert charged(bench) == {"ann": 50, "bob": 50}, "what it borrows just now"
    bench.end(bob)
    assert charged(bench) == {"ann": 100}
    assert bench.hit([*range(100), 1]) == 100
    assert bench.loans[bench.start([*range(100), 1], "bob")].shares, "it is new to it again"


@pytest.mark.parametrize("seed", range(12))
def test_random_rows_of_several_tenants(seed):
    """As for one tenant, with limits; no limit is exceeded by what nobody borrows."""
    rng = random.Random(seed)
    keeping = Keeping(most=rng.choice([0, 20, 1000]), scrap=rng.choice([0, 8]))
    bench = Bench(
        budget=rng.choice([60, 200, 10_000]), keeping=keeping, copying=rng.random() < 0.25
    )
    shares = bench.cache.tree.shares
    limits = {"bob": 50 * TOKEN_BYTES, "eve": 20 * TOKEN_BYTES}
    shares.configure({user: Part(rng.choice([0.5, 2]), most) for user, most in limits.items()})
    texts = [[rng.randrange(4) for _ in range(60)] for _ in range(3)]
    for _ in range(150):
        if rng.random() < 0.5 and len(bench.running) < 6:
            base = rng.choice(texts)[: rng.randint(1, 60)]
            more = [rng.randrange(4) for _ in range(rng.randint(1, 20))]
            bench.start(base + more, rng.choice(["ann", "bob", "eve"]))
        elif bench.running:
            bench.end(rng.choice(list(bench.running)))
            for user, most in limits.items():
                free = [n for n in bench.cache.tree.walk() if not (n.loans or n.children)]
                assert shares.charged().get(user, 0) <= most or all(
                    user not in n.users for n in free
                )
        for row in bench.running:
            bench.lent(row)
        assert bench.cache.tree.nbytes <= bench.budget
        assert sum(shares.charged().values()) == bench.cache.tree.nbytes
    for row in list(bench.running):
        bench.end(row)
    bench.cache.clear()
    assert shares.charged() == {}
