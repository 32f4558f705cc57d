"""What passes of target and draft model cost on this machine, measured at load.

In pieces of one pass each. Engine thread only.
"""

from __future__ import annotations

import time
from array import array
from typing import NamedTuple

import mlx.core as mx

from .drafting import Curve
from .engine import Engine
from .loader import Loaded
from .network import Network
from .params import SamplingParams
from .pieces import Pieces
from .plans import DecodePlan, Span
from .rows import Row
from .sampling import RowSampling
from .variant import BASE, Variant

TOKENS = (1, 2, 4, 8, 16, 32, 64)
NEAR, FAR = 8, 1024  # tokens attended
REPEATS = 3
PROBE = "costs"  # stands for the draft model's name
BUDGET = 1 << 40  # bytes; one row and a thousand tokens are small


class Costs(NamedTuple):
    """Of passes of the target, and of its draft model if it has one."""

    verify: Curve
    propose: Curve | None


def measuring(target: Loaded, draft: Loaded | None) -> Pieces[Costs]:
    """Costs of all passes, in memory of the measurement's own, which is given back."""
    # Not in the engine that serves: rows of other models may hold what this takes.
    engine = Engine(target, kv_memory=BUDGET, prefix_cache=False, draft=draft)
    try:
        yield None
        verify = yield from _curve(engine, engine.network, BASE)
        propose = None
        if engine.drafter is not None:
            propose = yield from _curve(engine, engine.drafter.network, Variant(draft=PROBE))
        return Costs(verify, propose)
    finally:
        engine.close()


def _curve(engine: Engine, network: Network, variant: Variant) -> Pieces[Curve]:
    prompt = array("i", [0]) * (FAR + TOKENS[-1] + 1)
    sampling = RowSampling(SamplingParams(temperature=0.0), prompt, engine.vocab_size)
    row = engine.admit("costs", prompt, sampling, (), variant)
    assert row is not None
    try:
        near = []
        for count in TOKENS:
            seconds = yield from _seconds(network, row, NEAR, count)
            near.append(seconds)
        far = yield from _seconds(network, row, FAR, TOKENS[3])
    finally:
        engine.release(row)
    context = max(0.0, far - near[3]) / (TOKENS[3] * (FAR - NEAR))
    # More tokens cannot cost less: what says so is noise.
    rising = [max(near[: i + 1]) for i in range(len(near))]
    return Curve(TOKENS, tuple(rising), context)


def _seconds(network: Network, row: Row, start: int, count: int) -> Pieces[float]:
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
        yield None
    return best
