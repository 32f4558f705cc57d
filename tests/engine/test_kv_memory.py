"""Several engines on one memory: one budget, one order of eviction, and everything given back."""

from __future__ import annotations

import gc
import random
from array import array

import pytest

from cache.loan import Borrower
from engine.engine import Engine
from engine.kv_memory import KvMemory, TenantPart
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling
from engine.variant import BASE, Variant
from tests.drafts import NAME, always_worth_it, blurred
from tests.engine.memory import active_bytes
from tests.models import load_model, loaded, make

GREEDY = SamplingParams(temperature=0.0)

pytestmark = pytest.mark.usefixtures("exact_count")


def words(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 500) for _ in range(count)]


def admit(engine: Engine, tokens: list[int], variant: Variant = BASE) -> Row | None:
    prompt = array("i", tokens)
    sampling = RowSampling(GREEDY, prompt, engine.vocab_size)
    return engine.admit("row", prompt, sampling, (), variant)


def run(engine: Engine, tokens: list[int], variant: Variant = BASE) -> None:
    """One whole request; its prompt stays in the tree."""
    row = admit(engine, tokens, variant)
    assert row is not None
    while row.remaining:
        engine.prefill(row, 512)
    engine.submit([row], [4])
    engine.collect()
    engine.release(row)


def cached(engine: Engine, tokens: list[int]) -> int:
    return engine.lookup(array("i", tokens)).length


def two(tokens: int) -> tuple[KvMemory, Engine, Engine]:
    """Two engines with a memory for so many of their tokens."""
    memory = KvMemory(0)
    qwen, llama = (Engine(loaded(f), kv_memory=memory) for f in ("qwen3", "llama"))
    assert qwen.token_bytes == llama.token_bytes
    memory.limit = tokens * qwen.token_bytes
    return memory, qwen, llama


def test_what_is_used_least_recently_in_any_model_goes_first():
    memory, qwen, llama = two(2030)
    prompts = [words(seed, 500) for seed in range(3)]
    run(qwen, prompts[0])
    run(llama, prompts[1])
    run(qwen, prompts[2])
    assert all(cached(e, p) == 499 for e, p in zip((qwen, llama, qwen), prompts, strict=True))
    run(qwen, [*prompts[0], 7])  # now the llama's is the oldest
    run(llama, words(9, 500))
    assert cached(llama, prompts[1]) == 0
    assert cached(qwen, prompts[0]) == cached(qwen, prompts[2]) == 499
    assert qwen.used + llama.used <= memory.limit


def test_all_models_together_stay_within_the_budget():
    memory, qwen, llama = two(2500)
    rng = random.Random(3)
    rows: list[tuple[Engine, Row]] = []
    refused = 0
    for i in range(40):
        engine = (qwen, llama)[i % 2]
        row = admit(engine, words(i, rng.randint(50, 750)))
        if row is None:
            refused += 1
            assert rows
            other, victim = rows.pop(0)
            other.release(victim)
            continue
        rows.append((engine, row))
        while row.remaining:
            engine.prefill(row, 512)
        assert qwen.used + llama.used <= memory.limit
    assert refused, "the budget was never felt"
    assert qwen.forest.evicted_tokens and llama.forest.evicted_tokens
    for engine, row in rows:
        engine.release(row)


def tenant_row(engine: Engine, tenant: str, tokens: list[int]) -> Row | None:
    prompt = array("i", tokens)
    sampling = RowSampling(GREEDY, prompt, engine.vocab_size)
    return engine.admit("row", prompt, sampling, (), borrower=Borrower(tenant))


def prefill(engine: Engine, row: Row) -> None:
    while row.remaining:
        engine.prefill(row, 512)


def test_one_off_prompts_of_one_tenant_cost_another_nothing_in_any_model():
    """Several at a time, whose rows alone would fill the memory."""
    memory, qwen, llama = two(4000)
    prefixes = [words(seed, 450) for seed in range(3)]
    for prefix in prefixes:
        row = tenant_row(qwen, "ann", [*prefix, 5])
        prefill(qwen, row)
        qwen.release(row)
    running: list[tuple[Engine, Row]] = []
    waited = 0
    for i in range(30):
        engine = (qwen, llama)[i % 2]
        while (row := tenant_row(engine, "bob", words(100 + i, 750))) is None:
            waited += 1
            assert running, "alone, it gets what there is"
            other, ended = running.pop(0)
            other.release(ended)
        prefill(engine, row)
        running.append((engine, row))
        for prefix in prefixes:
            assert cached(qwen, [*prefix, 5, 6]) == 450
        assert qwen.used + llama.used <= memory.limit
    assert waited > 10
    assert llama.forest.evicted_tokens > 0
    for engine, row in running:
        engine.release(row)
    charged = memory.shares.charged()
    assert charged["ann"] > 1349 * qwen.token_bytes, "a first word may be shared"
    assert charged["bob"] > charged["ann"]


def test_a_tenant_alone_may_fill_the_memory():
    _, qwen, _ = two(4000)
    row = tenant_row(qwen, "ann", words(1, 1500))
    prefill(qwen, row)
    qwen.release(row)
    assert tenant_row(qwen, "bob", words(2, 3500)) is not None
    assert cached(qwen, words(1, 1500)) == 0


def test_a_share_of_the_memory_bounds_what_is_kept():
    memory, qwen, _ = two(8000)
    memory.configure({"ann": TenantPart(1.0, 0.125)})
    for seed in range(4):
        row = tenant_row(qwen, "ann", words(seed, 700))
        prefill(qwen, row)
        qwen.release(row)
        kept = memory.shares.charged()["ann"]
        assert 600 * qwen.token_bytes < kept <= 1000 * qwen.token_bytes
        assert cached(qwen, [*words(seed, 700), 1]) == 699
    memory.limit //= 2
    assert memory.shares.charged() == {}, "the share follows the memory"


def test_tails_of_a_draft_model_count_for_all_models():
    memory = KvMemory(1 << 30)
    drafted = Engine(loaded("qwen3"), kv_memory=memory, draft=blurred("qwen3", 0.1))
    llama = Engine(loaded("llama"), kv_memory=memory)
    row = admit(drafted, words(1, 1000), Variant(draft=NAME))
    assert drafted.budget.held == drafted.used >= 2 * 1000 * drafted.token_bytes
    memory.limit = drafted.used + 600 * llama.token_bytes
    assert admit(llama, words(2, 900)) is None
    drafted.release(row)
    assert admit(llama, words(2, 900)) is not None
    drafted.close()


def test_a_closed_engine_leaves_its_part_to_the_others():
    memory, qwen, llama = two(2300)
    run(qwen, words(1, 1000))
    row = admit(qwen, words(2, 300))
    assert admit(llama, words(3, 1700)) is None
    qwen.release(row)
    qwen.close()
    assert admit(llama, words(3, 1700)) is not None
    assert memory.reserve(0)


def test_closing_gives_all_memory_back_without_the_garbage_collector(tmp_path):
    path = make("qwen3", tmp_path / "model", seed=5)
    warm = Engine(load_model(path), kv_memory=1 << 30, draft=load_model(path))
    always_worth_it(warm)
    for variant in (BASE, Variant(draft=NAME)):
        run(warm, words(1, 300), variant)  # what comes once and stays
    warm.close()
    del warm
    gc.collect()
    base = active_bytes()
    gc.disable()
    try:
        engine = Engine(load_model(path), kv_memory=1 << 30, draft=load_model(path))
        always_worth_it(engine)
        run(engine, words(1, 700))
        run(engine, words(1, 700), Variant(draft=NAME))
        run(engine, [*words(1, 300), *words(2, 300)])
        assert active_bytes() - base > 1 << 20
        engine.close()
        assert active_bytes() - base < 1 << 12
    finally:
        gc.enable()
