"""When the conversations of an open loop begin, whatever the server does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from .bench_scenario import Burst, Poisson


def arrival_times(arrivals: Poisson | Burst, seed: str) -> Iterator[float]:
    """Seconds after the start, in order, without end; equal arguments give equal times."""
    if isinstance(arrivals, Burst):
        for number in itertools.count():
            yield from itertools.repeat(number * arrivals.every_s, arrivals.size)
    else:
        rng, time = random.Random(seed), 0.0
        while True:
            time += rng.expovariate(arrivals.per_s)
            yield time
