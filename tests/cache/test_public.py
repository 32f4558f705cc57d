"""Public prompts: in every domain's tree, in one tree's memory."""

from __future__ import annotations

import random
from array import array

import pytest

from cache.block import PublicBlock
from cache.forest import Forest
from cache.keeping import Keeping
from cache.loan import PUBLIC, Loan
from cache.namespace import PUBLIC_DOMAIN, Namespace
from cache.prefix_cache import PrefixCache
from cache.radix import RadixTree

from .bench import TOKEN_BYTES, Bench, assert_kv, lend_all

PROMPT = range(100)
LIBRARY, ONE, TWO = (Namespace("m", domain=d) for d in (PUBLIC_DOMAIN, "one", "two"))


def forest(keeping: Keeping | None = None, stateful: bool = False) -> Forest:
    def make(ledger) -> PrefixCache:
        return PrefixCache(
            reserve=lambda size, tenant: True,
            keeping=keeping or lend_all(),
            stateful=stateful,
            tree=RadixTree(ledger),
        )

    return Forest(make)


def publish(made: Forest, *prompts) -> None:
    bench = Bench.over(made.of(LIBRARY))
    for prompt in prompts:
        row = bench.start(prompt, PUBLIC)
        if bench.cache.stateful:
            bench.cache.snapshot(bench.running[row], len(prompt), f"after {len(prompt)}", 7)
        bench.end(row)
        assert bench.cache.pin(array("i", prompt))


def test_every_domain_has_it_and_its_memory_is_there_once():
    made = forest()
    publish(made, PROMPT)
    for name in (ONE, TWO):
        bench = Bench.over(made.of(name))
        row = bench.start([*PROMPT, *range(500, 520)], "ann")
        assert bench.lent(row) == 100
        assert bench.loans[row] == Loan({PUBLIC: 100}, ())
        assert made.nbytes == 100 * TOKEN_BYTES
    assert made.ledger.shares.charged() == {PUBLIC: 100 * TOKEN_BYTES}


def test_a_domain_that_has_nothing_yet_is_told_of_it():
    made = forest()
    publish(made, PROMPT)
    prompt = array("i", [*PROMPT, 500])
    cold = made.find(ONE)
    assert cold is not None
    told = cold.lookup(prompt)
    assert (told.length, len(made)) == (100, 1)
    assert made.of(ONE).lookup(prompt) == told


def test_it_is_never_given_up():
    made = forest()
    publish(made, PROMPT)
    bench = Bench.over(made.of(ONE))
    bench.end(bench.start([*PROMPT, *range(500, 520)], "ann"))
    assert made.evict() == 20 * TOKEN_BYTES
    assert made.evict() == -1
    assert made.nbytes == 100 * TOKEN_BYTES
    assert len(made) == 1, "the domain has nothing of its own any more"


def test_a_fork_inside_it_copies_nothing_and_heals():
    made = forest()
    publish(made, PROMPT)
    bench = Bench.over(made.of(ONE))
    held = bench.start([*PROMPT, 1000], "ann")
    for cut in (60, 30, 80):
        bench.end(bench.start([*range(cut), *range(500, 520)], "bob"))
        assert bench.hit([*range(cut), *range(500, 520), 1]) == cut + 20
    public = [n for n in bench.cache.tree.walk() if isinstance(n.payload, PublicBlock)]
    assert len(public) == 4
    for node in public:
        assert_kv(node.payload.layers, node.key, node.start)
    assert made.nbytes == (100 + 3 * 20) * TOKEN_BYTES
    while made.evict() >= 0:
        pass
    bench.end(held)
    (node,) = [n for n in bench.cache.tree.walk() if isinstance(n.payload, PublicBlock)]
    assert (node.start, node.end, node.payload.nbytes) == (0, 100, 0)
    assert_kv(node.payload.layers, node.key, 0)


def test_a_cut_where_a_tail_begins_stays_until_the_row_ends():
    made = forest()
    publish(made, PROMPT)
    bench = Bench.over(made.of(ONE))
    kept = bench.start([*range(60), *range(500, 520)], "ann")
    assert bench.lent(kept) == 60
    bench.end(bench.start([*PROMPT, 1000], "ann"))
    assert bench.lent(kept) == 60
    bench.end(kept)
    made.ledger.shares.evict()
    made.ledger.shares.evict()
    assert made.evict() == -1


def test_prompts_that_begin_alike_share_their_beginning():
    made = forest()
    publish(made, PROMPT, [*range(70), *range(300, 350)], range(40))
    assert made.nbytes == 150 * TOKEN_BYTES
    bench = Bench.over(made.of(ONE))
    assert [bench.hit([*p, 1]) for p in (PROMPT, [*range(70), *range(300, 350)])] == [100, 120]
    assert made.nbytes == 150 * TOKEN_BYTES


def test_states_are_lent_along_and_none_is_added():
    made = forest(stateful=True)
    publish(made, PROMPT)
    bench = Bench.over(made.of(ONE))
    hit = bench.cache.lookup(array("i", [*PROMPT, 500]))
    assert (hit.length, hit.snapshot) == (100, "after 100")
    row = bench.start(range(60), "ann")
    assert not bench.cache.wants_snapshot(bench.running[row], 60), "it could never be evicted"
    bench.end(row)
    assert made.nbytes == 100 * TOKEN_BYTES + 7


def test_all_is_given_back_when_the_forest_is_cleared():
    made = forest()
    publish(made, PROMPT)
    bench = Bench.over(made.of(ONE))
    bench.end(bench.start([*range(60), 500, 501], "ann"))
    made.drop(lambda name: name.domain == "one")
    assert (len(made), made.nbytes, made.evicted_tokens) == (1, 100 * TOKEN_BYTES, 2)
    made.clear()
    assert (len(made), made.nbytes) == (0, 0)
    assert made.ledger.shares.charged() == {}


@pytest.mark.parametrize("seed", range(8))
def test_random_rows_on_public_prompts_read_the_kv_of_their_own_tokens(seed):
    rng = random.Random(seed)
    made = forest(Keeping(most=rng.choice([0, 20, 1000]), scrap=rng.choice([0, 8])))
    texts = [[rng.randrange(4) for _ in range(60)] for _ in range(3)]
    publish(made, *texts[:2])
    public = made.nbytes
    benches: dict[Namespace, Bench] = {}
    for _ in range(150):
        name = rng.choice([ONE, TWO])
        bench = benches.get(name)
        if bench is None or bench.cache is not made.of(name):
            bench = benches[name] = Bench.over(made.of(name))
        if rng.random() < 0.5 and len(bench.running) < 4:
            base = rng.choice(texts)[: rng.randint(1, 60)]
            more = [rng.randrange(4) for _ in range(rng.randint(1, 20))]
            bench.start(base + more, rng.choice(["ann", "bob"]))
        elif rng.random() < 0.8 and bench.running:
            bench.end(rng.choice(list(bench.running)))
        else:
            made.evict()
        for each in benches.values():
            for row in each.running:
                each.lent(row)
        assert made.ledger.shares.charged()[PUBLIC] == public
        assert sum(made.ledger.shares.charged().values()) == made.nbytes
    for each in benches.values():
        for row in list(each.running):
            each.end(row)
    while made.evict() >= 0:
        pass
    assert (len(made), made.nbytes) == (1, public)
