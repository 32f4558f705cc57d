"""What a row's coming and going costs beside others: ``python -m deploy.loadtest.joins MODEL_DIR``.

Rows with long tails of their own are decoding; one more, short, is admitted, prefilled and
released. Prints the median seconds of that (its own forward pass not counted) with few and with
many neighbours, and with short and with long ones, and the ratios: 1 means that nothing grows with
the others' KV.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from array import array

from deploy.loadtest import random_model
from engine.engine import Engine
from engine.loader import Loaded, load
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling

ROUNDS = 40
SHORT, LONG = 300, 4000  # tokens of each neighbour


def start(engine: Engine, name: str, tokens: list[int]) -> tuple[Row, float]:
    """A prefilled row, and the seconds that admission took."""
    prompt = array("i", tokens)
    sampling = RowSampling(SamplingParams(temperature=0.0), prompt, engine.vocab_size)
    began = time.perf_counter()
    row = engine.admit(name, prompt, sampling)
    seconds = time.perf_counter() - began
    assert row is not None
    while row.remaining:
        engine.prefill(row, 512)
    return row, seconds


def change_seconds(loaded: Loaded, rows: int, length: int) -> float:
    """Median seconds of one row's admission and release beside ``rows`` running ones."""
    rng = random.Random(0)
    engine = Engine(loaded, kv_memory=1 << 34)

    def words(n: int) -> list[int]:
        return [rng.randrange(3, loaded.vocab_size) for _ in range(n)]

    running = [start(engine, str(i), words(length))[0] for i in range(rows)]
    times = []
    for i in range(ROUNDS):
        row, seconds = start(engine, f"guest {i}", words(40))
        for one in (*running, row):
            assert engine.make_room(one)
        engine.submit([*running, row])
        engine.collect()
        began = time.perf_counter()
        engine.release(row)
        times.append(seconds + time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Measures and prints one JSON object."""
    with random_model.chosen("time the coming and going of rows") as (model, _):
        loaded = load(
            str(model),
            dtype=None,
            trust_remote_code=False,
            max_context=None,
            progress=lambda _: None,
        )
        four, sixteen = (change_seconds(loaded, rows, LONG) for rows in (4, 16))
        short = change_seconds(loaded, 16, SHORT)
    numbers = {
        "4_rows_s": four,
        "16_rows_s": sixteen,
        "16_short_rows_s": short,
        "16_by_4_rows": sixteen / four,
        "long_by_short_rows": sixteen / short,
    }
    print(json.dumps({name: round(value, 6) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
