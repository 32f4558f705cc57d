"""What passes of target and draft model cost on this machine, measured at load.

Engine thread only.
"""

from __future__ import annotations

import time
from array import array

import mlx.core as mx

from .drafting import Curve
from .engine import Engine
from .network import Network
from .params import SamplingParams
from .plans import DecodePlan, Span
from .rows import Row
from .sampling import RowSampling
from .variant import BASE, Variant

TOKENS = (1, 2, 4, 8, 16, 32, 64)
NEAR, FAR = 8, 1024  # tokens attended
REPEATS = 3
PROBE = "costs"  # stands for the draft model's name


def verify_costs(engine: Engine) -> Curve:
    """Costs of the target's passes."""
    return _curve(engine, engine.network, BASE)


def propose_costs(engine: Engine) -> Curve:
    """Costs of the draft model's passes."""
    assert engine.drafter is not None
    return _curve(engine, engine.drafter.network, Variant(draft=PROBE))


def _curve(engine: Engine, network: Network, variant: Variant) -> Curve:
    prompt = array("i", [0]) * (FAR + TOKENS[-1] + 1)
    sampling = RowSampling(SamplingParams(temperature=0.0), prompt, engine.vocab_size)
    row = engine.admit("costs", prompt, sampling, (), variant)
    assert row is not None, "the budget holds the least that a server needs"
    near = [_seconds(network, row, NEAR, count) for count in TOKENS]
    far = _seconds(network, row, FAR, TOKENS[3])
    engine.release(row)
    context = max(0.0, far - near[3]) / (TOKENS[3] * (FAR - NEAR))
    # More tokens cannot cost less: what says so is noise.
    seconds = [max(near[: i + 1]) for i in range(len(near))]
    return Curve(TOKENS, tuple(seconds), context)


def _seconds(network: Network, row: Row, start: int, count: int) -> float:
    """The shortest of a few passes of ``count`` tokens from position ``start`` on.

    What the tail holds does not matter, so nothing is prefilled for it.
    """
    best = float("inf")
    ids = mx.zeros((count, 1), mx.int32)
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        plan = DecodePlan([Span(row, start, count)], {row: row.lent()})
        mx.eval(mx.argmax(network.forward(ids, plan, {})[:, -1], axis=-1))
        best = min(best, time.perf_counter() - begin)
    return best
