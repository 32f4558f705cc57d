"""What counting costs: ``make metrics-cost``, with ``ARGS=ROWS``.

Does all that the metrics do for a decode step, for a request and for a scrape, and nothing else.
Prints microseconds, and the part of a step of the model that comes with the server.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from array import array
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from engine import embedded
from engine.engine import Engine
from engine.loader import load
from engine.params import SamplingParams
from engine.sampling import RowSampling
from engine.variant import BASE
from scheduler.info import ServiceConfig
from scheduler.metrics import Gauges, Metrics
from scheduler.stats import Course
from scheduler.tenant import Tenant
from scheduler.tenants import Tenants
from server.vllm_counts import VllmMetrics
from server.vllm_metrics import VllmNames

ROUNDS, REPEATS, STEPS, PROMPT, TENANTS = 7, 300, 60, 200, 8


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median over rounds of one call's time."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        rounds.append((time.perf_counter() - began) / repeats)
    return statistics.median(rounds)


def counting(rows: int, vllm: bool) -> dict[str, float]:
    """Seconds of a step's, a request's and a scrape's counting; with vLLM's names or without."""
    registry = CollectorRegistry()
    config = ServiceConfig("m", "m")
    metrics = (VllmMetrics(registry, config) if vllm else Metrics(registry)).model("m")
    tenants = [Tenant(f"t{i}") for i in range(TENANTS)]
    books = Tenants(tenants, registry)
    stats = books.accounting("m", metrics)
    streams = [stats.of(BASE, tenants[i % TENANTS].name) for i in range(rows)]

    def step() -> None:
        for stream in streams:
            stream.engine_time(0.001)
            stream.next_token(0.01)
        stats.step("decode", 0.01, rows)

    def request() -> None:
        stream = stats.of(BASE, "t0")
        stream.admitted(0.01, 1000, 900)
        stream.lent("t1", 900)
        stream.engine_time(0.01)
        stream.computed(100)
        stats.step("prefill", 0.01, 1)
        stream.first_token(0.02, 0.01)
        stream.ended(Course(1000, 100, 100, 200, 1.0, 0.9))
        stream.finished("stop", 1.0)

    def scrape() -> None:
        books.observe()
        metrics.observe(Gauges(), heartbeat_age=0.0, healthy=True)
        generate_latest(shown)

    shown = VllmNames(registry) if vllm else registry
    return {
        "step": seconds(step),
        "request": seconds(request),
        "scrape": seconds(scrape, 20),
    }


def decode_step(rows: int) -> float:
    """The median of a decode step of the embedded model."""
    loaded = load(
        str(embedded.path()),
        dtype=None,
        trust_remote_code=False,
        max_context=None,
        progress=lambda _: None,
    )
    engine, rng = Engine(loaded, kv_memory=1 << 32, prefix_cache=False), random.Random(0)
    batch = []
    for i in range(rows):
        prompt = array("i", [rng.randrange(3, engine.vocab_size) for _ in range(PROMPT)])
        sampling = RowSampling(SamplingParams(temperature=0.0), prompt, engine.vocab_size)
        row = engine.admit(str(i), prompt, sampling)
        assert row is not None
        while row.remaining:
            engine.prefill(row, 512)
        batch.append(row)
    steps = []
    for _ in range(STEPS):
        assert all(engine.make_room(row) for row in batch)
        began = time.perf_counter()
        engine.submit(batch)
        engine.collect()
        steps.append(time.perf_counter() - began)
    return statistics.median(steps)


def main() -> None:
    """Prints the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="?", type=int, default=16)
    rows = parser.parse_args().rows
    counted, step = counting(rows, vllm=False), decode_step(rows)
    compatible = counting(rows, vllm=True)
    figures = {f"{name}_us": 1e6 * value for name, value in counted.items()}
    figures |= {f"{name}_vllm_us": 1e6 * value for name, value in compatible.items()}
    figures |= {"decode_step_us": 1e6 * step, "part_of_a_step": counted["step"] / step}
    figures["part_of_a_step_vllm"] = compatible["step"] / step
    print(json.dumps({"rows": rows} | {k: round(v, 4) for k, v in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
