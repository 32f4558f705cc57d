"""What lending costs on this machine, measured at load. Engine thread only."""

from __future__ import annotations

import time

import mlx.core as mx

from cache.keeping import Keeping

from .attention import merge, partial, shared_partial
from .engine import Engine
from .pieces import Pieces, finish

REPEATS = 5
SAMPLE = 512  # tokens whose copy is timed
STEPS = 64  # decode steps over which a copy has to pay off
LEAST, MOST = 256, 4096  # tokens; bounds on what a noisy measurement may say


def calibrate(engine: Engine) -> Keeping:
    """All of ``calibrating`` at once."""
    return finish(calibrating(engine))


def calibrating(engine: Engine) -> Pieces[Keeping]:
    """Up to how many tokens a borrower nobody shares with copies rather than borrows.

    One more lent node costs a row some operations per layer and step; a copy costs its bytes
    once. The answer is the length at which both cost the same over ``STEPS`` steps.
    """
    if not engine.pool.shapes:
        return Keeping()
    shape = engine.pool.shapes[0]
    keys = mx.random.normal((1, shape.heads, SAMPLE, shape.key_dim)).astype(shape.dtype)
    values = mx.random.normal((1, shape.value_heads, SAMPLE, shape.value_dim)).astype(shape.dtype)
    queries = mx.random.normal((1, shape.heads, 1, shape.key_dim)).astype(shape.dtype)
    mx.eval(keys, values, queries)
    few = (keys[:, :, :16], values[:, :, :16])

    def lone() -> mx.array:
        return merge([partial(queries, *few)], None)

    def lent() -> mx.array:
        return merge([partial(queries, *few), shared_partial(queries, *few)], None)

    def copied() -> list[mx.array]:
        return [keys * 1.0, values * 1.0]

    yield None
    node = max(_seconds(lent) - _seconds(lone), 1e-6) * STEPS
    yield None
    token = max(_seconds(copied), 1e-7) / SAMPLE
    return Keeping(most=int(min(max(node / token, LEAST), MOST)))


def _seconds(work: object) -> float:
    """The shortest of a few runs."""
    assert callable(work)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        mx.eval(work())
        best = min(best, time.perf_counter() - start)
    return best
