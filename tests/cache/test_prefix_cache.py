"""The cache of one namespace, with small arrays in place of KV and rows that only hold them."""

from __future__ import annotations

import random
from array import array

import pytest

from cache.keeping import Keeping
from cache.lease import NO_HIT

from .bench import TOKEN_BYTES, Bench, Row, lend_all


def test_a_miss_borrows_nothing():
    bench = Bench()
    row = bench.start(range(10))
    assert bench.lent(row) == 0
    assert bench.cache.stats().nbytes == 0


def test_all_but_the_last_token_of_a_prompt_can_be_reused():
    bench = Bench()
    bench.end(bench.start(range(10)))
    assert bench.cache.lookup(array("i", range(10))).length == 9
    assert bench.cache.lookup(array("i", range(20))).length == 10
    assert bench.cache.lookup(array("i", [0])) == NO_HIT


def test_looking_changes_nothing():
    bench = Bench()
    bench.end(bench.start(range(10)))
    before = bench.cache.tree.dump()
    bench.cache.lookup(array("i", [0, 1, 2, 9, 9]))
    assert bench.cache.tree.dump() == before


def test_a_prompt_that_nobody_shares_costs_no_bytes_while_it_runs():
    bench = Bench()
    row = bench.start(range(100))
    assert bench.cache.tree.tokens == 100
    assert bench.cache.tree.nbytes == 0
    bench.end(row)
    assert bench.cache.tree.nbytes == 100 * TOKEN_BYTES


def test_a_prefix_of_a_running_row_becomes_a_block_that_both_borrow():
    bench = Bench(keeping=lend_all())
    first = bench.start(range(100))
    second = bench.start([*range(60), *range(500, 520)])
    assert bench.lent(first) == bench.lent(second) == 60
    assert bench.cache.tree.nbytes == 60 * TOKEN_BYTES
    assert len(first.layers[0].keys[0, 0]) == 40


def test_a_short_block_that_nobody_else_uses_moves_into_the_borrower():
    bench = Bench(keeping=Keeping(most=50))
    bench.end(bench.start(range(40)))
    row = bench.start(range(60))
    assert bench.lent(row) == 0
    assert bench.cache.tree.nbytes == 0
    assert bench.cache.tree.tokens == 60


def test_a_block_that_another_borrows_stays():
    bench = Bench(keeping=Keeping(most=1000, scrap=0))
    bench.end(bench.start(range(40)))
    first = bench.start([*range(40), 100])
    second = bench.start([*range(40), 200])
    assert bench.lent(first) == bench.lent(second) == 40
    third = bench.start([*range(40), 300])
    assert bench.lent(third) == 40
    assert bench.cache.tree.nbytes == 40 * TOKEN_BYTES


def test_a_lease_is_released_exactly_once():
    bench = Bench()
    row = bench.start(range(10))
    lease = bench.running[row]
    bench.end(row)
    with pytest.raises(AssertionError):
        bench.cache.release(lease, row)


def test_a_cancelled_lease_leaves_no_loan():
    bench = Bench(keeping=lend_all())
    bench.end(bench.start(range(10)))
    lease, anchor = bench.cache.lend(array("i", range(20)), 10)
    assert anchor == 10
    bench.cache.cancel(lease)
    bench.check()


def test_nothing_on_loan_is_evicted():
    bench = Bench(keeping=lend_all())
    bench.end(bench.start(range(50)))
    bench.end(bench.start(range(100, 150)))
    row = bench.start([*range(30), 900])
    bench.cache.clear()
    assert bench.lent(row) == 30
    assert bench.cache.lookup(array("i", range(100, 150))).length == 0
    assert bench.cache.evict() == -1
    assert bench.cache.evicted_tokens == 20 + 50
    bench.end(row)
    bench.cache.clear()
    assert bench.cache.stats() == (0, 0, 0, 0, 0)


def test_the_least_recently_used_goes_first():
    bench = Bench(keeping=lend_all())
    for base in (0, 100, 200):
        bench.end(bench.start(range(base, base + 10)))
    bench.end(bench.start(range(11)))
    assert bench.cache.evict() == 10 * TOKEN_BYTES
    hits = [bench.cache.lookup(array("i", range(b, b + 11))).length for b in (0, 100, 200)]
    assert hits == [10, 0, 10]


def test_a_block_on_loan_is_not_moved_when_its_path_forks():
    bench = Bench(keeping=lend_all())
    bench.end(bench.start(range(100)))
    row = bench.start([*range(80), 700])
    block = bench.cache.lent(bench.running[row], 80)[0].payload
    for cut in (90, 85):
        bench.end(bench.start([*range(cut), 800 + cut]))
    assert bench.cache.lent(bench.running[row], 80)[0].payload is block


def test_cutting_a_block_needs_room_for_a_copy():
    bench = Bench(budget=150, keeping=lend_all())
    bench.end(bench.start(range(100)))
    bench.evicting = False
    hit = bench.cache.lookup(array("i", [*range(60), 900]))
    assert (hit.length, hit.whole) == (60, 0)
    assert bench.cache.lend(array("i", [*range(60), 900]), hit.length) is None
    bench.check()


def test_taking_a_prefix_out_of_a_row_needs_room():
    bench = Bench(budget=50, keeping=lend_all())
    first = bench.start(range(100))
    assert bench.start([*range(60), 900]) is None
    assert bench.lent(first) == 0
    bench.check()


def test_what_cannot_be_copied_out_of_an_ending_row_is_dropped():
    bench = Bench(budget=20)
    row = bench.start(range(100))
    bench.end(row)
    assert bench.cache.tree.nodes == 0
    assert bench.cache.evicted_tokens == 100


def test_chunks_committed_one_by_one_end_as_one_block():
    bench = Bench()
    prompt = array("i", range(100))
    lease, _ = bench.cache.lend(prompt, 0)
    row = Row(prompt)
    bench.running[row] = lease
    for stop in range(10, 101, 10):
        assert bench.cache.commit(lease, row, prompt[:stop])
    assert bench.cache.tree.nodes == 1
    bench.end(row)
    assert bench.cache.tree.nodes == 1


def test_turns_of_a_conversation_do_not_end_as_slivers():
    bench = Bench(keeping=lend_all())
    for turn in range(1, 33):
        bench.end(bench.start(range(10 * turn)))
    assert bench.cache.tree.tokens == 320
    assert bench.cache.tree.nodes <= 6


def test_two_rows_that_computed_the_same_share_it_afterwards():
    bench = Bench(keeping=lend_all())
    prompts = [array("i", [*range(50), tail]) for tail in (100, 200)]
    leases = [bench.cache.lend(p, 0)[0] for p in prompts]  # both before either is known
    rows = [Row(p) for p in prompts]
    for prompt, lease, row in zip(prompts, leases, rows, strict=True):
        bench.running[row] = lease
        bench.cache.commit(lease, row, prompt)
    assert [r.anchor for r in rows] == [0, 0]
    bench.cache.share(leases[1], rows[1])
    assert [bench.lent(r) for r in rows] == [50, 50]
    assert bench.cache.tree.nbytes == 50 * TOKEN_BYTES
    bench.check()


@pytest.mark.parametrize("first", [0, 1])
def test_either_of_two_rows_that_computed_the_same_may_end_first(first):
    bench = Bench(budget=0)
    prompts = [array("i", [*range(50), *range(base, base + 10)]) for base in (100, 200)]
    leases = [bench.cache.lend(p, 0)[0] for p in prompts]
    rows = [Row(p) for p in prompts]
    for prompt, lease, row in zip(prompts, leases, rows, strict=True):
        bench.running[row] = lease
        bench.cache.commit(lease, row, prompt)
    bench.end(rows[first])
    assert bench.cache.lookup(prompts[1 - first]).length == 59
    bench.end(rows[1 - first])
    assert bench.cache.tree.nodes == 0


def test_without_a_cache_nothing_is_kept():
    bench = Bench(enabled=False)
    bench.end(bench.start(range(10)))
    assert bench.cache.lookup(array("i", range(10))) == NO_HIT
    assert bench.cache.tree.nodes == 0


# layers that cannot be cut


def test_a_hit_of_a_stateful_model_ends_at_its_deepest_snapshot():
    bench = Bench(stateful=True)
    prompt = array("i", range(100))
    lease, _ = bench.cache.lend(prompt, 0)
    row = Row(prompt)
    bench.running[row] = lease
    for stop in (30, 60):
        bench.cache.commit(lease, row, prompt[:stop])
        assert bench.cache.wants_snapshot(lease, stop)
        assert not bench.cache.wants_snapshot(lease, stop - 1)
        bench.cache.snapshot(lease, stop, f"state {stop}", 8)
        assert not bench.cache.wants_snapshot(lease, stop)
    bench.cache.commit(lease, row, prompt)
    assert bench.cache.tree.snapshot_nbytes == 16
    hit = bench.cache.lookup(prompt)
    assert (hit.length, hit.kv_length, hit.snapshot) == (60, 99, "state 60")
    hit = bench.cache.lookup(array("i", [*range(50), 900, 901]))
    assert (hit.length, hit.kv_length, hit.snapshot) == (30, 50, "state 30")
    assert bench.cache.lookup(array("i", [*range(20), 900])) == (0, 0, 20, None)
    bench.end(row)
    assert bench.cache.lookup(prompt).length == 60


def test_a_fork_before_a_snapshot_keeps_it():
    bench = Bench(stateful=True)
    first = bench.start(range(100))
    bench.cache.snapshot(bench.running[first], 100, "end", 8)
    second = bench.start([*range(40), 900])
    assert bench.cache.lookup(array("i", range(101))).snapshot == "end"
    bench.end(first)
    bench.end(second)
    assert bench.cache.lookup(array("i", range(101))).snapshot == "end"


def test_a_snapshot_goes_with_its_node_and_not_while_that_is_on_loan():
    bench = Bench(stateful=True, keeping=lend_all())
    first = bench.start(range(50))
    bench.cache.snapshot(bench.running[first], 50, "state", 8)
    bench.end(first)
    second = bench.start([*range(50), 900])
    assert bench.lent(second) == 50
    assert bench.cache.evict() == -1, "the state belongs to a path on loan"
    assert bench.cache.tree.snapshot_nbytes == 8
    bench.end(second)
    bench.cache.clear()
    assert bench.cache.tree.snapshot_nbytes == 0


# rows that copy


def test_copying_rows_borrow_only_to_read():
    bench = Bench(copying=True)
    first = bench.start(range(50))
    assert bench.lent(first) == 0
    assert bench.cache.tree.nbytes == 50 * TOKEN_BYTES, "copied at once: its row keeps its own"
    second = bench.start([*range(50), 900])
    assert bench.lent(second) == 0
    bench.end(first)
    bench.end(second)
    assert bench.cache.tree.nbytes == 51 * TOKEN_BYTES


# everything at once


@pytest.mark.parametrize("seed", range(12))
def test_random_rows_read_the_kv_of_their_own_tokens(seed):
    rng = random.Random(seed)
    keeping = Keeping(most=rng.choice([0, 20, 1000]), scrap=rng.choice([0, 8]))
    bench = Bench(
        budget=rng.choice([60, 200, 10_000]), keeping=keeping, copying=rng.random() < 0.25
    )
    texts = [[rng.randrange(4) for _ in range(60)] for _ in range(3)]
    for _ in range(120):
        action = rng.random()
        if action < 0.5 and len(bench.running) < 6:
            base = rng.choice(texts)[: rng.randint(1, 60)]
            bench.start(base + [rng.randrange(4) for _ in range(rng.randint(1, 20))])
        elif action < 0.9 and bench.running:
            bench.end(rng.choice(list(bench.running)))
        else:
            bench.cache.evict()
        for row in bench.running:
            bench.lent(row)
        assert bench.cache.tree.nbytes <= bench.budget
    for row in list(bench.running):
        bench.end(row)
    bench.cache.clear()
    assert bench.cache.stats() == (0, 0, 0, 0, 0)


def twins(bench: Bench, *texts) -> list[Row]:
    """Rows that computed the same 50 tokens, both before the tree knew of either."""
    rows = [Row(text) for text in texts]
    leases = [bench.cache.lend(row.tokens, 0)[0] for row in rows]
    for row, lease in zip(rows, leases, strict=True):
        bench.running[row] = lease
        assert bench.cache.commit(lease, row, row.tokens[:50])
    bench.check()
    return rows


def test_rows_with_the_same_prompt_continue_it_each_in_its_own_way():
    bench = Bench(stateful=True)
    first, second = twins(bench, [*range(50), *range(100, 110)], [*range(50), *range(200, 210)])
    bench.end(first)
    lease = bench.running[second]
    bench.cache.commit(lease, second, second.tokens)
    assert bench.cache.wants_snapshot(lease, 60)
    bench.cache.snapshot(lease, 60, "second", 8)
    bench.end(second)
    assert bench.cache.lookup(array("i", [*second.tokens, 0])).snapshot == "second"
    assert bench.cache.lookup(array("i", [*first.tokens, 0])) == (0, 0, 60, None)


def test_a_row_inherits_what_an_ending_twin_cannot_copy():
    bench = Bench(budget=0)
    first, second = twins(bench, range(50), range(50))
    bench.end(first)
    assert bench.cache.lookup(array("i", range(51))).length == 50
    bench.end(second)
    assert bench.cache.tree.nodes == 0
