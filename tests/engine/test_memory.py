"""What KV really costs: MLX's own count of active bytes against the engine's books."""

from __future__ import annotations

import random
from array import array

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from engine.engine import Engine
from engine.loader import Loaded
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling
from engine.slabs import GRANULE
from tests.engine.memory import active_bytes
from tests.models import loaded

LENT = ("qwen3", "llama", "gemma3", "gpt_oss", "qwen3_next")
GREEDY = SamplingParams(temperature=0.0)

pytestmark = pytest.mark.usefixtures("exact_count")


def state_bytes(model: Loaded) -> int:
    """What mlx-lm itself keeps of one long row in the layers that are not kept by token."""
    caches = make_prompt_cache(model.model)
    for token in range(3, 50):
        mx.eval(model.model(mx.array([[token]]), cache=caches))
    return sum(c.nbytes for c in caches if type(c) is not KVCache)


def start(engine: Engine, name: str, tokens: list[int], boundaries: list[int] = ()) -> Row:
    prompt = array("i", tokens)
    sampling = RowSampling(GREEDY, prompt, engine.vocab_size)
    row = engine.admit(name, prompt, sampling, boundaries)
    assert row is not None
    while row.remaining:
        engine.prefill(row, 512)
    return row


def words(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(3, 500) for _ in range(n)]


@pytest.mark.parametrize("family", LENT)
def test_sixteen_rows_on_one_prefix_cost_their_own_tails(family):
    engine = Engine(loaded(family), kv_memory=1 << 34)
    rng = random.Random(1)
    shared = words(rng, 2000)
    # A stateful row's state is in the batch, and in the tree for whoever continues its prompt.
    row_bytes = GRANULE * engine.token_bytes + 2 * state_bytes(loaded(family))
    rows = [start(engine, str(i), shared + words(rng, 100)) for i in range(2)]
    # The second row makes the prefix a block, be it by a hit or because it computed it again.
    assert rows[0].anchor == rows[1].anchor == 2000
    before = active_bytes()
    for i in range(2, 16):
        rows.append(start(engine, str(i), shared + words(rng, 100)))
        assert rows[-1].anchor == 2000
        if len(rows) in (4, 8, 16):  # slots are made in powers of two
            assert active_bytes() - before <= 1.01 * (len(rows) - 2) * row_bytes
    engine.submit(rows)
    engine.collect()
    for row in rows:
        engine.release(row)


@pytest.mark.parametrize(
    ("family", "seed"),
    [("qwen3", 0), ("qwen3", 1), ("gemma3", 2), ("gemma3", 3), ("qwen3_next", 4)],
)
def test_accounted_bytes_are_measured_bytes(family, seed):
    rng = random.Random(seed)
    model = loaded(family)
    state_bytes(model)  # what the model itself computes once and keeps is not ours
    base = active_bytes()
    engine = Engine(model, kv_memory=1 << 34)
    systems = [words(rng, rng.randint(500, 1500)) for _ in range(3)]
    rows: list[Row] = []
    snapshots = 0
    for step in range(50):
        action = rng.random()
        if action < 0.35 and len(rows) < 8:
            system = rng.choice(systems)
            cut = len(system) - rng.choice([0, 0, 300])
            prompt = system[:cut] + words(rng, rng.randint(2, 500))
            rows.append(start(engine, str(step), prompt, [cut]))
        elif action < 0.5 and rows:
            engine.release(rows.pop(rng.randrange(len(rows))))
        elif action < 0.55:
            engine.cache().evict()
        elif rows and all(engine.make_room(r) for r in rows):
            engine.submit(rows)
            engine.collect()
        engine.cache().tree.check()
        snapshots = max(snapshots, engine.cache().tree.snapshot_nbytes)
        measured = active_bytes() - base
        if engine.used > 1 << 20:
            assert abs(engine.used - measured) <= 0.02 * measured
    for row in rows:
        engine.release(row)
    rows.clear()
    del row
    engine.cache().clear()
    assert engine.used == 0
    assert active_bytes() - base < 1 << 14
    assert not engine.stateful or snapshots


def test_the_budget_covers_rows_and_tree():
    model = loaded("qwen3")
    engine = Engine(model, kv_memory=0)
    engine.budget.limit = 2000 * engine.token_bytes
    rng = random.Random(5)
    started = 0
    rows: list[Row] = []
    for i in range(40):
        prompt = array("i", words(rng, rng.randint(50, 750)))
        row = engine.admit(str(i), prompt, RowSampling(GREEDY, prompt, engine.vocab_size))
        assert engine.used <= engine.budget.limit
        if row is None:
            assert rows, "an empty engine has room for what fits"
            engine.release(rows.pop(0))
            continue
        started += 1
        rows.append(row)
        while row.remaining:
            engine.prefill(row, 512)
            assert engine.used <= engine.budget.limit
    assert started > 20
    assert engine.cache().evicted_tokens > 0
    for row in rows:
        engine.release(row)
        assert engine.used <= engine.budget.limit


def test_without_a_prefix_cache_nothing_is_kept():
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34, prefix_cache=False)
    prompt = words(random.Random(2), 600)
    for i in range(2):
        row = start(engine, str(i), prompt)
        assert row.anchor == 0
        engine.submit([row])
        engine.collect()
        engine.release(row)
        assert engine.used == 0
    assert engine.input_tokens == 1200
