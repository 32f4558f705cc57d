"""At load: does attention over lent blocks give what mlx-lm's own caches give?

Compares logits on random tokens: cold, lent and batched, after a cut in the middle of a block,
and where rows give several tokens to a step, some of which are taken back. In pieces of one small
pass each. Owned by the engine thread.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from cache.keeping import Keeping

from .engine import Engine
from .loader import Loaded
from .params import SamplingParams
from .pieces import Pace, Pieces, finish
from .rows import Row
from .sampling import RowSampling

PREFIX, CUT, SUFFIX, STEPS = 96, 61, 7, 4  # tokens; the cut lies inside the prefix
MOST_CHUNK, LEAST_CHUNK = 40, 4  # tokens of one pass over a prompt
SINGLE = ((1, 1, 1),) * STEPS  # tokens of each row, step by step
SEVERAL = ((1, 2, 3), (3, 2, 1))
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
    pace = Pace(LEAST_CHUNK, MOST_CHUNK)
    for tokens in texts:
        prompt = array("i", tokens[:-STEPS])
        sampling = RowSampling(SamplingParams(temperature=0.0), prompt, loaded.vocab_size)
        row = engine.admit(str(len(rows)), prompt, sampling)
        assert row is not None
        rows.append(row)
        while row.remaining:
            began = time.perf_counter()
            count = engine.prefill(row, pace.chunk)
            pace.took(count, time.perf_counter() - began)
            yield None
    several = not engine.network.own
    if several:
        # Other tokens first, which are taken back: the next step writes over them.
        for row in rows:
            row.tokens.extend(whole[:3])
        _step(engine, rows, SEVERAL[0])
        yield None
    references = []
    for row, tokens in zip(rows, texts, strict=True):
        row.tokens = array("i", tokens)
        reference = yield from _reference(loaded, tokens, pace)
        references.append(reference)
    pairs: list[tuple[mx.array, mx.array]] = []
    for counts in SEVERAL if several else SINGLE:
        found = _step(engine, rows, counts)
        for row, logits, reference in zip(rows, found, references, strict=True):
            first = row.length - len(row.tokens) + STEPS + 1
            row.length += len(logits)
            pairs += zip(logits, reference[first:], strict=False)
        yield None
    while rows:
        engine.release(rows.pop())
    return pairs


def _step(engine: Engine, rows: Sequence[Row], counts: Sequence[int]) -> list[list[mx.array]]:
    """Logits after each of the next ``counts`` tokens of every row."""
    wanted = dict(zip(rows, counts, strict=True))
    spans = [s._replace(width=wanted[s.row]) for s in engine.decoding.spans(rows)]
    ids = [t for s in spans for t in s.row.tokens[s.start : s.start + s.width]]
    logits = engine.decoding.forward(spans, mx.array(ids))
    mx.eval(logits)
    found: dict[Row, list[mx.array]] = {}
    first = 0
    for span in spans:
        found[span.row] = [logits[first + i] for i in range(span.width)]
        first += span.width
    return [found[row] for row in rows]


def _reference(loaded: Loaded, tokens: Sequence[int], pace: Pace) -> Pieces[list[mx.array]]:
    """mlx-lm's logits after each of the last tokens, given one by one."""
    caches = make_prompt_cache(loaded.model)
    start = len(tokens) - STEPS - 1
    done = 0
    while done < start:
        began = time.perf_counter()
        chunk = tokens[done : min(start, done + pace.chunk)]
        loaded.model(mx.array(list(chunk))[None], cache=caches)
        mx.eval([c.state for c in caches])
        pace.took(len(chunk), time.perf_counter() - began)
        done += len(chunk)
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
