"""What adapters cost in a batch: ``python -m deploy.loadtest.adapter_rows [MODEL_DIR]``.

Sixteen rows decode without an adapter, then with eight different ones dealt out to them, and with
one for all. Prints tokens per second of each and the ratios, and how far the memory of fifty
adapters of mixed ranks exceeds that of their own weights.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from deploy.loadtest import random_model
from engine.engine import Engine
from engine.loader import load
from engine.params import SamplingParams
from engine.sampling import RowSampling
from engine.variant import Variant

ROWS, ADAPTERS, STEPS, ROUNDS = 16, 8, 60, 5
RANK = 8
RANKS = (4, 8, 16, 32, 64)
PROMPT = 200
TARGETS = ("self_attn.q_proj", "self_attn.v_proj")


def write_adapter(model: nn.Module, out: Path, rank: int, seed: int) -> tuple[Path, int]:
    """An adapter with random factors for the usual projections, and the bytes of these."""
    mx.random.seed(seed)
    weights = {}
    for name, module in model.named_modules():
        if name.endswith(TARGETS):
            rows, columns = module.weight.shape
            weights[f"{name}.lora_a"] = mx.random.normal((columns, rank))
            weights[f"{name}.lora_b"] = mx.random.normal((rank, rows)) * 0.01
    out.mkdir()
    mx.save_safetensors(str(out / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": rank, "scale": 1.0}}
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out, sum(w.nbytes for w in weights.values())


def tokens_per_second(engine: Engine, adapters: Sequence[str | None]) -> float:
    """Of one decode batch with a row for each of ``adapters``."""
    rng = random.Random(0)
    rows = []
    for i, adapter in enumerate(adapters):
        prompt = array("i", [rng.randrange(3, engine.vocab_size) for _ in range(PROMPT)])
        sampling = RowSampling(SamplingParams(temperature=0.0), prompt, engine.vocab_size)
        row = engine.admit(str(i), prompt, sampling, (), Variant(adapter))
        assert row is not None
        while row.remaining:
            engine.prefill(row, 512)
        rows.append(row)
    began = time.perf_counter()
    for _ in range(STEPS):
        assert all(engine.make_room(row) for row in rows)
        engine.submit(rows)
        engine.collect()
    seconds = time.perf_counter() - began
    for row in rows:
        engine.release(row)
    return len(rows) * STEPS / seconds


def measure(model: Path, scratch: Path) -> dict[str, float]:
    """All numbers."""
    loaded = load(
        str(model), dtype=None, trust_remote_code=False, max_context=None, progress=lambda _: None
    )
    some = [write_adapter(loaded.model, scratch / f"a{i}", RANK, i)[0] for i in range(ADAPTERS)]
    many = [
        write_adapter(loaded.model, scratch / f"m{i}", RANKS[i % len(RANKS)], i) for i in range(50)
    ]
    engine = Engine(loaded, kv_memory=1 << 34, prefix_cache=False, adapter_slots=100)
    for path in some:
        engine.adapters.register(path.name, path)
    mixes: dict[str, list[str | None]] = {
        "none": [None] * ROWS,
        "eight": [f"a{i % ADAPTERS}" for i in range(ROWS)],
        "one": ["a0"] * ROWS,
        "half": [f"a{i % ADAPTERS}" if i % 2 else None for i in range(ROWS)],
    }
    speeds: dict[str, list[float]] = {name: [] for name in mixes}
    for _ in range(ROUNDS):  # by turns, since the machine's own speed drifts
        for name, mix in mixes.items():
            speeds[name].append(tokens_per_second(engine, mix))
    medians = {f"{name}_tok_s": statistics.median(s) for name, s in speeds.items()}
    ratios = {
        f"{name}_by_none": statistics.median(
            a / b for a, b in zip(speeds[name], speeds["none"], strict=True)
        )
        for name in ("eight", "one", "half")
    }
    return {**medians, **ratios, "fifty_adapters_by_own_weights": memory(engine, many)}


def memory(engine: Engine, adapters: Sequence[tuple[Path, int]]) -> float:
    """MLX's bytes for more adapters by the bytes of their weights."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    for path, _ in adapters:
        engine.adapters.register(path.name, path)
    mx.synchronize()
    return (mx.get_active_memory() - before) / sum(size for _, size in adapters)


def main() -> None:
    """Measures and prints one JSON object."""
    with random_model.chosen("time decode batches of rows with adapters") as (model, scratch):
        numbers = measure(model, scratch)
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
