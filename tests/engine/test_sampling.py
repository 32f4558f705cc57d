"""Sampling against mlx-lm's filters and plain numpy, and its independence of the batch."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.params import SamplingParams
from engine.sampling import RowSampling, sample
from engine.uniform import fresh_seed, uniform
from tests.engine.sampled import (
    GREEDY,
    assert_distributed,
    commit,
    draw_many,
    expected,
    logits_of,
    run,
    tokens_of,
)


@pytest.fixture(autouse=True, scope="module")
def uncompiled():
    """mlx-lm compiles its filters, anew for each setting."""
    mx.disable_compile()
    yield
    mx.enable_compile()


# the numbers


def test_uniform_numbers_are_uniform_and_below_one():
    numbers = np.array([uniform(11, i) for i in range(20_000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (numbers.astype(np.float32) == numbers).all()
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    assert_distributed(counts, np.full(50, 1 / 50))


def test_uniform_numbers_of_near_seeds_and_positions_are_unrelated():
    grid = np.array([[uniform(seed, i) for i in range(200)] for seed in range(200)]) - 0.5
    for a, b in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:]), (grid, grid.T)):
        upper = np.triu_indices_from(grid, 1) if a is grid else ...
        assert abs((a[upper] * b[upper]).mean() * 12) < 5 / np.sqrt(grid.size / 2)


def test_uniform_takes_any_seed_and_stays_the_same():
    assert uniform(1, 2) == uniform(1 + 2**64, 2)
    assert 0 <= uniform(-5, 0) < 1
    assert uniform(-5, 0) != uniform(5, 0)
    # The published first outputs of SplitMix64 for seed 0; a seed must outlive an update.
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    assert [uniform(0, i) for i in range(3)] == [(x >> 40) / 2**24 for x in published]


def test_fresh_seeds_differ():
    assert len({fresh_seed() for _ in range(100)}) == 100
    rows = [RowSampling(SamplingParams(), [0], 8) for _ in range(100)]
    assert len({r.seed for r in rows}) == 100


# the distribution


FILTERS = {
    "none": {},
    "warm": {"temperature": 1.7},
    "cool": {"temperature": 0.4},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "top_k and top_p": {"top_k": 20, "top_p": 0.6},
    "all": {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.03},
    "top_k of one": {"top_k": 1},
    "tiny top_p": {"top_p": 1e-6},
    "strict min_p": {"min_p": 1.0},
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("width", [40, 700])
def test_draws_follow_the_filtered_distribution(name, width):
    params = SamplingParams(seed=5, **FILTERS[name])
    logits = logits_of(width, 1, width)
    assert_distributed(draw_many(logits, params, 4000), expected(logits, params))


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(2, 600),
    temperature=st.floats(0.05, 2.0),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 0.5),
)
@settings(max_examples=100, deadline=None)
def test_only_admissible_tokens_are_drawn(seed, width, temperature, top_k, top_p, min_p):
    params = SamplingParams(
        temperature=temperature, top_p=top_p, top_k=top_k % width, min_p=min_p, seed=seed
    )
    logits = logits_of(seed, 1, width, spread=4.0)
    probabilities = expected(logits, params)
    counts = draw_many(logits, params, 64)
    # Where rounding decides whether a token is in, either answer is right.
    outside = counts[probabilities == 0].sum()
    if outside:
        near = expected(
            logits, replace(params, top_p=min(1.0, top_p + 1e-5), min_p=min_p * 0.99999)
        )
        assert not counts[near == 0].any()


def test_equally_likely_tokens():
    flat = mx.zeros((1, 10))
    assert draw_many(flat, SamplingParams(top_k=3, seed=1), 300).nonzero()[0].tolist() == [0, 1, 2]
    assert draw_many(flat, SamplingParams(top_p=0.5, seed=1), 500).all()
    assert draw_many(flat, SamplingParams(min_p=1.0, seed=1), 500).all()


def test_top_k_beyond_the_vocabulary_filters_nothing():
    logits = logits_of(3, 1, 30)
    for top_k in (30, 31, 10**9):
        open_, closed = SamplingParams(seed=9), SamplingParams(seed=9, top_k=top_k)
        assert (draw_many(logits, closed, 200) == draw_many(logits, open_, 200)).all()


def test_rare_tokens_keep_their_share_in_a_large_vocabulary():
    # Each rare token has less mass than float32 can add to that of the common one.
    width, rare = 1 << 17, 2.5e-8
    logits = np.full((1, width), np.log(rare), np.float32)
    logits[0, 0] = 0.0
    common = 1 / (1 + rare * (width - 1))
    positions = [i for i in range(10_000) if uniform(2, i) > common + 1e-4][:12]
    wide = mx.broadcast_to(mx.array(logits), (len(positions), width))
    drawn = tokens_of(wide, [SamplingParams(seed=2)] * len(positions), positions=positions)
    for position, token in zip(positions, drawn, strict=True):
        want = (uniform(2, position) - common) / (1 - common) * width
        assert token == pytest.approx(want, abs=width / 50)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0, 2.0])
def test_extreme_logits(temperature):
    params = SamplingParams(temperature=temperature, seed=4)
    one = mx.full((1, 600), -1e30)
    one[0, 599] = 0.0
    assert draw_many(one, params, 100)[599] == 100
    masked = mx.full((1, 600), -mx.inf)
    masked[0, 3] = masked[0, 300] = 88.0
    assert set(draw_many(masked, params, 100).nonzero()[0].tolist()) == {3, 300}
    huge = logits_of(1, 1, 600) + 1e4
    counts = draw_many(huge, params, 500)
    assert_distributed(counts, expected(huge - 1e4, params))


def test_first_and_last_token_can_be_drawn():
    logits = mx.zeros((1, 257))
    counts = draw_many(logits, SamplingParams(seed=6), 4000)
    assert counts[0] > 0
    assert counts[256] > 0


def test_padding_of_the_logits_is_never_chosen():
    logits = logits_of(0, 2, 40)
    logits[:, 32:] = 100.0
    rows = [RowSampling(p, [0], 32) for p in (GREEDY, SamplingParams(seed=1, logprobs=3))]
    for position in range(50):
        sampled = sample(logits, rows, [position] * 2)
        assert max(sampled.tokens.tolist()) < 32
    assert sampled.top is not None
    assert sampled.top[0].max().item() < 32


# greedy


def test_greedy_is_the_first_maximum_in_any_batch():
    logits = logits_of(8, 6, 300)
    logits[2, 17] = logits[2, 200] = 50.0
    want = mx.argmax(logits, axis=-1).tolist()
    assert want[2] == 17
    assert tokens_of(logits, [GREEDY] * 6) == want
    drawn = SamplingParams(seed=3, top_p=0.5)
    mixed = [GREEDY, drawn, GREEDY, drawn, replace(GREEDY, logit_bias=((5, 0.0),)), GREEDY]
    got = tokens_of(logits, mixed)
    assert [got[i] for i in (0, 2, 4, 5)] == [want[i] for i in (0, 2, 4, 5)]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_logits(dtype):
    logits = logits_of(8, 3, 300).astype(dtype)
    params = [GREEDY, SamplingParams(seed=3, top_p=0.7), replace(GREEDY, frequency_penalty=0.5)]
    whole = tokens_of(logits, params)
    assert whole == tokens_of(logits.astype(mx.float32), params)
    assert whole[0] == mx.argmax(logits[0]).item()


# independence of the batch


row_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.9]),
    top_p=st.sampled_from([1.0, 0.95, 0.5]),
    top_k=st.sampled_from([0, 1, 7, 50, 1000]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 50),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.sampled_from([(), ((3, 2.5), (9, -100.0))]),
    logprobs=st.sampled_from([None, 0, 4]),
)


@given(
    params=st.lists(row_params, min_size=2, max_size=6),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 1000),
    width=st.sampled_from([60, 300, 1500]),
)
@settings(max_examples=100, deadline=None)
def test_a_row_is_the_same_in_any_batch(params, order, seed, width):
    """Three steps of every row alone, and all together in changing order."""
    count, steps = len(params), 3
    prompt = [1, 2, 3, 9]
    logits = [logits_of(seed * steps + step, count, width) for step in range(steps)]

    def go(batches: list[list[int]]) -> dict[tuple[int, int], int]:
        rows = [RowSampling(p, prompt, width) for p in params]
        got = {}
        for step in range(steps):
            for batch in batches:
                batch = order.sample(batch, len(batch))
                picked = [rows[i] for i in batch]
                positions = [4 + i + step for i in batch]
                sampled = sample(logits[step][mx.array(batch)], picked, positions)
                commit(picked, sampled.tokens)
                for i, token in zip(batch, sampled.tokens.tolist(), strict=True):
                    got[i, step] = token
        return got

    alone = go([[i] for i in range(count)])
    assert go([list(range(count))]) == alone
    assert go([[0], list(range(1, count))]) == alone


def test_a_seed_fixes_the_tokens_and_positions_change_them():
    logits = mx.zeros((1, 1000))
    params = SamplingParams(seed=123)
    first = [tokens_of(logits, [params], positions=[i])[0] for i in range(20)]
    again = [tokens_of(logits, [params], positions=[i])[0] for i in reversed(range(20))]
    other = [tokens_of(logits, [replace(params, seed=124)], positions=[i])[0] for i in range(20)]
    assert first == again[::-1]
    assert len(set(first)) > 15
    assert sum(a == b for a, b in zip(first, other, strict=True)) <= 2


def test_rows_without_a_seed_differ():
    logits = mx.zeros((8, 100_000))
    assert len(set(tokens_of(logits, [SamplingParams()] * 8))) > 1


def test_the_given_logits_are_left_alone():
    logits = logits_of(8, 3, 50)
    before = np.array(logits)
    params = [replace(GREEDY, logit_bias=((1, 9.0),)), SamplingParams(seed=1, top_k=2), GREEDY]
    mx.eval(run(logits, params).tokens)
    assert (np.array(logits) == before).all()
