"""What a stream notices of another model's load: ``python -m deploy.loadtest.model_load``.

A small model streams while a large one is loaded, checked and made ready on the same engine
thread. Prints the pauses between the stream's tokens before and during the load, and the floor:
one forward pass of a single token through the large model, which nothing can cut.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from deploy.loadtest import random_model
from engine.model_memory import ModelMemory
from engine.params import SamplingParams
from scheduler.door import Door, Hold
from scheduler.events import Token
from scheduler.info import ModelConfig, ServiceConfig
from scheduler.live import going_live
from scheduler.members import Member
from scheduler.pool import ModelPool
from scheduler.request import Request
from scheduler.stats import NO_STATS

TOKENS = 200  # of the stream, before the load begins


def build(main: Path, other: Path) -> ModelPool:
    """A pool with ``main`` in memory and ``other`` to be loaded."""
    models = (ModelConfig("main", str(main), keep_loaded=True), ModelConfig("other", str(other)))
    config = ServiceConfig(model=str(main), served_model_name="main", models=models[1:])
    memory = ModelMemory(None, 256 << 20, several=True)
    pool = ModelPool(
        [Member(model, Door()) for model in models],
        lambda m: going_live(m.config, m.adapters, config, memory, NO_STATS, lambda _: None),
        memory,
        tell=lambda _: None,
        wake=lambda: None,
    )
    pool.start()
    return pool


def stream(pool: ModelPool, prompt: tuple[int, ...]) -> Iterator[float]:
    """The seconds between the tokens of an endless greedy reply, as they come."""
    hold = Hold()
    assert pool.members["main"].door.enter(hold)
    pool.add(Request("stream", prompt, 30_000, SamplingParams(temperature=0.0), model="main"))
    pool.leave("main", hold)
    last = time.perf_counter()
    while True:
        for event in pool.step():
            if isinstance(event, Token):
                now = time.perf_counter()
                yield now - last
                last = now


def measure(main: Path, other: Path) -> dict[str, object]:
    """Pauses in milliseconds."""
    pool = build(main, other)
    gaps = stream(pool, (7, 8, 9))
    before = [next(gaps) for _ in range(TOKENS)][20:]
    began = time.perf_counter()
    pool.want("other", Hold())
    during = []
    while (live := pool.members["other"].live) is None:
        during.append(next(gaps))
    seconds = time.perf_counter() - began
    network = live.engine.network.model
    passes = []
    for _ in range(5):
        began = time.perf_counter()
        mx.eval(network(mx.array([[7]])))
        passes.append(time.perf_counter() - began)
    return {
        "weights_mb": round(live.weights / 1e6),
        "load_seconds": round(seconds, 2),
        "tokens_meanwhile": len(during),
        "pauses_before_ms": spread(before),
        "pauses_during_ms": spread(during),
        "one_token_pass_ms": round(min(passes) * 1e3, 1),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and longest, in milliseconds."""
    values = sorted(seconds)
    picks = {"median": len(values) // 2, "p99": int(0.99 * len(values)), "longest": -1}
    return {name: round(values[at] * 1e3, 1) for name, at in picks.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = random_model.make(Path(folder, "small"))
        large = random_model.make(
            Path(folder, "large"), hidden=args.hidden, layers=args.layers, heads=16, kv_heads=4
        )
        print(json.dumps(measure(small, large), indent=2))


if __name__ == "__main__":
    main()
