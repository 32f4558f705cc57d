"""What grammars cost in a batch: ``python -m deploy.loadtest.grammar_rows [MODEL_DIR]``.

Eight rows decode freely, then each by a JSON schema. Prints seconds of a step of each, the ratio,
and what the masks of a step take by themselves.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from array import array
from pathlib import Path

from deploy.loadtest import random_model
from engine.engine import Engine
from engine.grammar import Grammar
from engine.loader import load
from engine.params import SamplingParams
from engine.sampling import RowSampling
from engine.steering import Constraint, Steering
from engine.tokenizer import Tokenizer

ROWS, STEPS, ROUNDS, PROMPT = 8, 60, 5, 200
SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 4, "maxLength": 40},
            "kind": {"enum": ["fruit", "vegetable", "other"]},
            "price": {"type": "number", "minimum": 0, "maximum": 1000},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z-]{1,20}$"}},
            "stock": {"type": "integer", "minimum": 0},
        },
        "required": ["name", "kind", "price", "tags", "stock"],
        "additionalProperties": False,
    },
}


def step_seconds(engine: Engine, grammar: Grammar | None) -> tuple[float, float]:
    """Median of a step of one batch, and of all its masks."""
    rng = random.Random(0)
    rows = []
    for i in range(ROWS):
        prompt = array("i", [rng.randrange(3, engine.vocab_size) for _ in range(PROMPT)])
        steering = grammar and Steering(Constraint(grammar), engine.vocab_size)
        params = SamplingParams(temperature=0.0)  # drawing hides what masks cost
        sampling = RowSampling(params, prompt, engine.vocab_size, steering)
        row = engine.admit(str(i), prompt, sampling)
        assert row is not None
        while row.remaining:
            engine.prefill(row, 512)
        rows.append(row)
    steps, masks = [], []
    for _ in range(STEPS):
        assert all(engine.make_room(row) for row in rows)
        began = time.perf_counter()
        engine.submit(rows)
        ends = [outcome.end for outcome in engine.collect()]
        steps.append(time.perf_counter() - began)
        assert not any(ends)
        began = time.perf_counter()
        for row in rows:
            if row.sampling.steering is not None:
                row.sampling.steering.masks(())
        masks.append(time.perf_counter() - began)
    for row in rows:
        engine.release(row)
    return statistics.median(steps), statistics.median(masks)


def measure(model: Path) -> dict[str, float]:
    """All numbers."""
    loaded = load(
        str(model), dtype=None, trust_remote_code=False, max_context=None, progress=lambda _: None
    )
    grammars = Tokenizer(loaded.tokenizer).grammars
    began = time.perf_counter()
    grammar = grammars.compile(f"start: %json {json.dumps(SCHEMA)}")
    first = time.perf_counter() - began
    engine = Engine(loaded, kv_memory=1 << 34, prefix_cache=False)
    free, bound, masks = [], [], []
    for _ in range(ROUNDS):  # by turns, since the machine's own speed drifts
        free.append(step_seconds(engine, None)[0])
        seconds, mask = step_seconds(engine, grammar)
        bound.append(seconds)
        masks.append(mask)
    ratios = [b / f for b, f in zip(bound, free, strict=True)]
    return {
        "first_compile_s": first,
        "free_step_ms": 1e3 * statistics.median(free),
        "constrained_step_ms": 1e3 * statistics.median(bound),
        "masks_of_a_step_ms": 1e3 * statistics.median(masks),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    """Prints the numbers as JSON."""
    about = "time decode batches of rows with grammars"
    with random_model.chosen(about, hidden=512, layers=8, heads=8) as (model, _):
        print(json.dumps({k: round(v, 4) for k, v in measure(model).items()}, indent=2))


if __name__ == "__main__":
    main()
