"""At load: does attention over lent blocks give what mlx-lm's own caches give?

Compares logits on random tokens: cold, lent and batched, and after a cut in the middle of a
block. In pieces of one small pass each. Owned by the engine thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from cache.prefix_cache import Keeping

from .engine import Engine
from .loader import Loaded
from .params import SamplingParams
from .pieces import Pieces, finish
from .rows import Row
from .sampling import RowSampling

PREFIX, CUT, SUFFIX, STEPS = 96, 61, 7, 4  # tokens; the cut lies inside the prefix
CHUNK = 40  # tokens of one piece
TOLERANCE = {mx.float32: 2e-3, mx.float16: 0.1, mx.bfloat16: 0.25}  # of the logits' deviation
BUDGET = 1 << 40  # the check's own KV is small; its budget must not matter


def lends_correctly(loaded: Loaded) -> bool:
    """All of ``checking`` at once."""
    return finish(checking(loaded))


def checking(loaded: Loaded) -> Pieces[bool]:
    """Whether logits agree with mlx-lm's caches within rounding, for every way to a hit."""
    engine = Engine(loaded, kv_memory=BUDGET, attention="lent", keeping=Keeping(most=0))
    rows: list[Row] = []
    try:
        yield None
        pairs = yield from _pairs(engine, loaded, rows)
        return all(_agrees(ours, theirs) for ours, theirs in pairs)
    except (AttributeError, TypeError, ValueError, IndexError):
        # A model that treats its caches in a way of its own does not get as far as a number.
        return False
    finally:
        for row in rows:  # those of a check that broke off
            row.tail, row.states = None, {}
        engine.close()


def _pairs(
    engine: Engine, loaded: Loaded, rows: list[Row]
) -> Pieces[list[tuple[mx.array, mx.array]]]:
    """Logits of this engine and of mlx-lm, for ``rows`` that were cold, lent, and cut."""
    random = np.random.default_rng(0)
    whole = random.integers(0, loaded.vocab_size, PREFIX + SUFFIX + STEPS).tolist()
    branch = random.integers(0, loaded.vocab_size, SUFFIX + STEPS).tolist()
    texts = (whole, whole[:PREFIX] + branch, whole[:CUT] + branch)
    pairs = []
    for tokens in texts:
        prompt = array("i", tokens[:-STEPS])
        sampling = RowSampling(SamplingParams(temperature=0.0), prompt, loaded.vocab_size)
        row = engine.admit(str(len(rows)), prompt, sampling)
        assert row is not None
        rows.append(row)
        while row.remaining:
            engine.prefill(row, CHUNK)
            yield None
    references = []
    for tokens in texts:
        reference = yield from _reference(loaded, tokens)
        references.append(reference)
    for step in range(STEPS):
        logits = engine.decode(rows)
        mx.eval(logits)
        for row, tokens, reference in zip(rows, texts, references, strict=True):
            index = engine.position(row)
            pairs.append((logits[index], reference[step]))
            row.tokens.append(tokens[len(row.tokens)])
        yield None
    while rows:
        engine.release(rows.pop())
    return pairs


def _reference(loaded: Loaded, tokens: Sequence[int]) -> Pieces[list[mx.array]]:
    """mlx-lm's logits after each of the last tokens, given one by one."""
    caches = make_prompt_cache(loaded.model)
    start = len(tokens) - STEPS - 1
    for begin in range(0, start, CHUNK):
        loaded.model(mx.array(list(tokens[begin : min(start, begin + CHUNK)]))[None], cache=caches)
        mx.eval([c.state for c in caches])
        yield None
    logits = []
    for token in tokens[start:-1]:
        logits.append(loaded.model(mx.array([[token]]), cache=caches)[0, -1])
        mx.eval(logits[-1])
        yield None
    return logits


def _agrees(ours: mx.array, theirs: mx.array) -> bool:
    tolerance = TOLERANCE.get(theirs.dtype, 0.25)
    a, b = ours.astype(mx.float32), theirs.astype(mx.float32)
    spread = mx.sqrt(mx.var(b)) + 1e-6
    # A NaN on either side compares as false.
    return bool((mx.abs(a - b).max() / spread <= tolerance).item())
