"""What the tests of the engine share: MLX's own count of bytes, exact."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import mlx.core as mx
import pytest


@pytest.fixture
def exact_count() -> Iterator[None]:
    """MLX may give a freed buffer of up to twice the size to a new array and counts all of it."""
    gc.collect()  # what other tests have left would be counted, if it went now
    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)
