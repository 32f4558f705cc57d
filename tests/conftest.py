"""What holds for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """A test that runs a command in this process sets it, which others would notice."""
    logger = logging.getLogger("commons")
    level = logger.level
    yield
    logger.setLevel(level)
