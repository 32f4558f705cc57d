"""Uniform random numbers by (seed, position) alone, with no state between draws.

Pure functions, on any thread.
"""

from __future__ import annotations

import secrets

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: positions land far apart
BITS = 24  # what float32 holds exactly below 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), exact in float32, the same on every machine."""
    state = _mix((_mix(seed & MASK) + (position + 1) * GOLDEN) & MASK)
    return (state >> (64 - BITS)) / (1 << BITS)


def fresh_seed() -> int:
    """A seed that nobody can guess."""
    return secrets.randbits(64)


def _mix(x: int) -> int:
    """The finaliser of SplitMix64: every input bit changes half of the output bits."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)
