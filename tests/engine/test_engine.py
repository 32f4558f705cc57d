"""Rows on the real engine: what they share, what they leave alone, and that it changes nothing."""

from __future__ import annotations

import random
from array import array
from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from cache.keeping import Keeping
from engine.engine import Engine
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling
from engine.selfcheck import lends_correctly
from engine.slabs import GRANULE
from tests.conversations import FAMILIES
from tests.models import loaded, model_dir
from tests.oracle import Oracle, compare

GREEDY = SamplingParams(temperature=0.0)
families = pytest.mark.parametrize("family", FAMILIES)


@cache
def oracle(family: str) -> Oracle:
    return Oracle(model_dir(family))


def engine_of(family: str, most: int = 0, kv_memory: int = 1 << 34) -> Engine:
    return Engine(
        loaded(family),
        kv_memory=kv_memory,
        attention="copied" if family == "deepseek_v3" else "lent",
        keeping=Keeping(most=most, scrap=0),
    )


def words(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 500) for _ in range(n)]


def start(
    engine: Engine,
    tokens: list[int],
    *,
    name: str = "row",
    chunk: int = 512,
    params: SamplingParams = GREEDY,
    boundaries: tuple[int, ...] = (),
) -> Row:
    prompt = array("i", tokens)
    sampling = RowSampling(params, prompt, engine.vocab_size)
    row = engine.admit(name, prompt, sampling, boundaries)
    assert row is not None
    while row.remaining:
        engine.prefill(row, chunk)
    return row


def step(engine: Engine, rows: list[Row]) -> None:
    assert all(engine.make_room(row) for row in rows)
    engine.submit(rows)
    assert {o.row for o in engine.collect()} == set(rows)


def decode(engine: Engine, row: Row, count: int, others: tuple[Row, ...] = ()) -> list[int]:
    before = len(row.tokens)
    for _ in range(count):
        step(engine, [row, *others])
    return row.tokens[before:].tolist()


def assert_cold(family: str, prompt: list[int], reply: list[int]) -> None:
    assert compare(reply, oracle(family).cold(prompt, len(reply))).kind != "different"


# the same replies, whoever shares


@families
@pytest.mark.parametrize("most", [0, 1024])
def test_rows_in_groups_reply_as_each_would_alone(family, most):
    engine = engine_of(family, most)
    system, context = words(1, 90), words(2, 70)
    prompts = [
        *([*system, *context, *words(10 + i, 3 + 5 * i)] for i in range(3)),
        *([*system, *words(20 + i, 4 + 9 * i)] for i in range(2)),
        words(30, 41),
    ]
    bounds = (len(system), len(system) + len(context))
    rows = [
        start(engine, p, name=str(i), boundaries=tuple(b for b in bounds if i < 5 and b < len(p)))
        for i, p in enumerate(prompts)
    ]
    if family != "deepseek_v3" and most == 0:
        assert [r.anchor for r in rows] == [160, 160, 160, 90, 90, 0]
    for _ in range(12):
        step(engine, rows)
    for row, prompt in zip(rows, prompts, strict=True):
        assert_cold(family, prompt, row.tokens[len(prompt) :].tolist())


@families
def test_rows_join_and_leave_in_any_order(family):
    engine = engine_of(family)
    rng = random.Random(4)
    system = words(1, 80)
    running: list[tuple[Row, list[int]]] = []
    for i in range(30):
        if rng.random() < 0.4 and len(running) < 5:
            prompt = [*system[: rng.choice([0, 40, 80])], *words(100 + i, rng.randint(1, 40))]
            running.append((start(engine, prompt, name=str(i), boundaries=()), prompt))
        elif rng.random() < 0.3 and running:
            row, prompt = running.pop(rng.randrange(len(running)))
            engine.release(row)
            assert_cold(family, prompt, row.tokens[len(prompt) :].tolist())
        if running:
            step(engine, [row for row, _ in running])
    for row, prompt in running:
        engine.release(row)
        assert_cold(family, prompt, row.tokens[len(prompt) :].tolist())
    assert not engine.pool.slabs
    assert not engine.decoding.batch.rows


@families
def test_chunks_of_any_size_give_the_same(family):
    prompt = words(3, 150)
    for chunk in (1, 7, 31, 64, 149):
        engine = engine_of(family)
        row = start(engine, prompt, chunk=chunk)
        assert engine.input_tokens == len(prompt) - 1
        assert_cold(family, prompt, decode(engine, row, 8))


@families
def test_a_continued_conversation_computes_only_what_is_new(family):
    engine = engine_of(family)
    history = words(5, 60)
    for turn in range(3):
        before = engine.input_tokens
        row = start(engine, history)
        assert row.length == len(history) - 1
        new = len(history) if not turn else 21
        assert engine.input_tokens - before == new - 1
        reply = decode(engine, row, 6)
        assert_cold(family, history, reply)
        engine.release(row)
        # The last token of a reply never went through the model: the client sends it back.
        history = [*history, *reply, *words(50 + turn, 20)]


@families
def test_the_model_is_given_nothing_twice(family):
    engine = engine_of(family)
    prompt = words(6, 100)
    engine.release(start(engine, prompt))
    assert engine.input_tokens == 99
    row = start(engine, prompt)
    assert (row.length, engine.input_tokens) == (99, 99)
    step(engine, [row])
    assert engine.input_tokens == 100


@families
@pytest.mark.parametrize("most", [0, 1024])
def test_rows_with_the_same_prompt_part_ways(family, most):
    engine = engine_of(family, most)
    prompt = array("i", words(8, 60))
    rows = []
    for seed in (1, 2):  # both are admitted before either has computed anything
        sampling = RowSampling(SamplingParams(seed=seed), prompt, engine.vocab_size)
        rows.append(engine.admit(str(seed), array("i", prompt), sampling))
    for row in rows:
        while row.remaining:
            engine.prefill(row, 25)
    for _ in range(6):
        step(engine, rows)
    histories = [row.tokens.tolist() for row in rows]
    assert histories[0] != histories[1]
    for row in rows:
        engine.release(row)
    for history in histories:
        longer = [*history, *words(9, 5)]
        assert engine.lookup(array("i", longer)).length == len(history) - 1
        row = start(engine, longer)
        assert_cold(family, longer, decode(engine, row, 6))
        engine.release(row)


# others' KV stays where it is


def test_a_row_that_joins_or_leaves_moves_nobody_elses_kv():
    engine = engine_of("qwen3")
    rows = [start(engine, words(i, 40 + i), name=str(i)) for i in range(3)]
    step(engine, rows)
    step(engine, rows)
    watched = rows[1]
    tail = watched.tail

    def content():
        return [x for kv in watched.kv(0, watched.length) for x in kv]

    before = [np.array(x) for x in content()]
    addresses = [address(x) for x in tail.slab.keys]
    fourth = start(engine, words(9, 30), name="fourth")
    engine.release(rows[0])
    engine.release(rows[2])
    assert watched.tail is tail
    assert [address(x) for x in tail.slab.keys] == addresses
    assert all(np.array_equal(a, b) for a, b in zip(before, content(), strict=True))
    step(engine, [watched, fourth])
    assert [address(x) for x in tail.slab.keys] == addresses, "a step copied the slab"


def address(x: mx.array) -> int:
    return int(np.array(x, copy=False).__array_interface__["data"][0])


def test_a_prefix_that_becomes_lent_shrinks_its_first_rows_tail():
    engine = engine_of("qwen3")
    shared = words(1, 3 * GRANULE)
    first = start(engine, shared + words(2, 10))
    assert first.tail.capacity == 4 * GRANULE
    second = start(engine, shared + words(3, 10))
    assert first.anchor == second.anchor == 3 * GRANULE
    assert first.tail.capacity == second.tail.capacity == GRANULE


def test_a_tail_grows_by_one_granule_when_it_is_full():
    engine = engine_of("llama")
    prompt = words(1, GRANULE - 2)
    row = start(engine, prompt)
    reply = decode(engine, row, 8)
    assert row.tail.capacity == 2 * GRANULE
    assert_cold("llama", prompt, reply)


def test_a_row_waits_where_others_leave_no_room():
    engine = engine_of("qwen3")
    engine.budget.limit = 4 * GRANULE * engine.token_bytes
    first = start(engine, words(1, 2 * GRANULE))
    prompt = array("i", words(2, 2 * GRANULE))
    sampling = RowSampling(GREEDY, prompt, engine.vocab_size)
    assert engine.admit("second", prompt, sampling) is None
    engine.release(first)
    assert engine.admit("second", prompt, sampling) is not None


def test_what_is_cached_does_not_keep_a_lone_row_out():
    engine = engine_of("qwen3", most=4096)
    prompt = words(1, 5 * GRANULE - 10)
    engine.release(start(engine, prompt[: 4 * GRANULE]))
    engine.budget.limit = 6 * GRANULE * engine.token_bytes
    assert engine.fits(len(prompt))
    row = start(engine, prompt)
    assert engine.used <= engine.budget.limit
    assert_cold("qwen3", prompt, decode(engine, row, 4))


@families
def test_what_fits_is_admitted_by_an_empty_engine(family):
    engine = engine_of(family)
    for granules in (4, 5, 9, 16):
        engine.budget.limit = engine.budget.least_bytes(granules * GRANULE) + 5
        longest = engine.budget.most_tokens
        assert longest == granules * GRANULE
        assert engine.fits(longest)
        assert not engine.fits(longest + 1)
        prompt = array("i", words(granules, longest))
        row = engine.admit("row", prompt, RowSampling(GREEDY, prompt, engine.vocab_size))
        assert row is not None
        engine.release(row)


# sampling


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_seeded_reply_is_the_same_in_any_company(family):
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=11, repetition_penalty=1.1)
    prompt = words(7, 50)
    alone = engine_of(family)
    first = start(alone, prompt, params=params)
    expected = decode(alone, first, 16)
    alone.release(first)
    engine = engine_of(family)
    others = tuple(
        start(engine, [*prompt[: 20 * i], *words(60 + i, 9)], name=str(i), params=p)
        for i, p in enumerate([GREEDY, SamplingParams(seed=3), SamplingParams(top_k=5)])
    )
    row = start(engine, prompt, params=params)
    assert decode(engine, row, 16, others) == expected
    other_seed = SamplingParams(temperature=1.0, top_p=0.9, seed=12, repetition_penalty=1.1)
    assert decode(alone, start(alone, prompt, params=other_seed), 16) != expected


def test_logprobs_go_to_the_row_that_asked():
    engine = engine_of("qwen3")
    plain = start(engine, words(1, 20))
    asking = start(engine, words(2, 20), params=SamplingParams(temperature=0.0, logprobs=3))
    engine.submit([plain, asking])
    found = {o.row: o.choices[0] for o in engine.collect()}
    assert found[plain].logprob is None
    assert found[plain].top == ()
    assert found[asking].top[0][0] == found[asking].token
    assert found[asking].top[0][1] == pytest.approx(found[asking].logprob, abs=1e-6)


# what the engine says of a model


@families
def test_the_self_check_lets_all_lend_but_deepseek(family):
    assert lends_correctly(loaded(family)) == (family != "deepseek_v3")
