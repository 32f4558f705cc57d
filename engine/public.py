"""Prompts that are computed once, at start, and lent to all trust domains. Engine thread only."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence

from cache.loan import PUBLIC, Borrower
from cache.namespace import PUBLIC_DOMAIN

from .engine import Engine
from .params import SamplingParams
from .pieces import Pace, Pieces
from .sampling import RowSampling
from .variant import BASE, Variant

LEAST_PASS, MOST_PASS = 16, 1024  # tokens of one pass, beside other models' streams
PUBLISHER = Borrower(PUBLIC, PUBLIC_DOMAIN)
END = 0  # a token behind the prompt, which is never given to the model


class PublicError(Exception):
    """A prompt that cannot be lent to all; one line that says why."""


def publishing(
    engine: Engine,
    tokens: Sequence[int],
    boundaries: Sequence[int] = (),
    variant: Variant = BASE,
) -> Pieces[None]:
    """Computes ``tokens`` and keeps their KV for ever, for the requests of all domains.

    ``boundaries`` are as in ``Request``; the end is one without being told. The memory is
    accounted to the tenant ``PUBLIC``, once. To be done before ``variant`` gets its first request
    (AssertionError). Raises PublicError where memory is lacking.
    """
    assert engine.forest.unseen(engine.namespace(variant)), "the variant is in use already"
    prompt = array("i", [*tokens, END])
    sampling = RowSampling(SamplingParams(), prompt, engine.vocab_size)
    row = engine.admit(PUBLIC, prompt, sampling, boundaries, variant, PUBLISHER)
    if row is None:
        raise PublicError(f"a public prompt of {len(tokens)} tokens needs more KV memory")
    cache = row.cache
    pace = Pace(LEAST_PASS, MOST_PASS)
    try:
        while row.remaining:
            began = time.perf_counter()
            count = engine.prefill(row, pace.chunk)
            pace.took(count, time.perf_counter() - began)
            yield None
    finally:
        engine.release(row)
    wanted = prompt[:-1]
    if cache.tree.match(wanted).length < len(wanted) or not cache.pin(wanted):
        raise PublicError(f"a public prompt of {len(tokens)} tokens needs more KV memory")
