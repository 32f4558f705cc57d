"""A small endpoint for all tests of loads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .endpoint import TinyEndpoint


@pytest.fixture
def endpoint() -> Iterator[TinyEndpoint]:
    with TinyEndpoint() as tiny:
        yield tiny
