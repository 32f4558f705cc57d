"""Threads that compile grammars, apart from those for prompts, and with a time limit.

A thread cannot be stopped. One that takes longer than the limit goes on alone, and as long as
there are too many of them, nothing new is compiled.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")
LIMIT = 6.0  # seconds; what takes long by itself has ended in a process apart before
THREADS = 2
MOST_RUNNING = 3  # those that are over time included


class TooLong(Exception):
    """The time is up."""


class TooBusy(Exception):
    """All threads are busy with work that is over its time."""


class Compiling:
    """Runs work on few threads. On the event loop."""

    def __init__(self, limit: float = LIMIT) -> None:
        self._limit = limit
        self._limiter: anyio.CapacityLimiter | None = None
        self._lock = threading.Lock()
        self._running = 0

    async def run(self, work: Callable[[], T], *, limited: bool = True) -> T:
        """The result of ``work``. Raises TooLong, TooBusy."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(THREADS)
        async with self._limiter:
            if self._running >= MOST_RUNNING:
                raise TooBusy
            # Not one of AnyIO's own limiters, which forget a thread when its caller does.
            counted = functools.partial(self._counted, work)
            try:
                with anyio.fail_after(self._limit if limited else None):
                    return await anyio.to_thread.run_sync(
                        counted, abandon_on_cancel=limited, limiter=anyio.CapacityLimiter(1)
                    )
            except TimeoutError as error:
                raise TooLong from error

    def _counted(self, work: Callable[[], T]) -> T:
        with self._lock:
            self._running += 1
        try:
            return work()
        finally:
            with self._lock:
                self._running -= 1
