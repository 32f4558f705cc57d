"""Threads that compile grammars, apart from those for prompts, and with a time limit.

A thread cannot be stopped. One that takes longer than the limit goes on alone, and as long as
there are too many of them, nothing new is compiled. A tenant has one thread at a time, so that
the others find one soon.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")
LIMIT = 6.0  # seconds; what takes long by itself has ended in a process apart before
PATIENCE = 5.0  # seconds that work waits for a thread
THREADS = 2
MOST_RUNNING = 3  # those that are over time included


class TooLong(Exception):
    """The time is up."""


class TooBusy(Exception):
    """No thread has become free, or all are busy with work that is over its time."""


class Compiling:
    """Runs work on few threads. On the event loop."""

    def __init__(self, limit: float = LIMIT, patience: float = PATIENCE) -> None:
        self._limit = limit
        self._patience = patience
        self._limiter: anyio.CapacityLimiter | None = None
        self._turns: dict[str, anyio.Lock] = {}
        self._lock = threading.Lock()
        self._running = 0

    async def run(self, work: Callable[[], T], tenant: str, *, limited: bool = True) -> T:
        """The result of ``work``. Raises TooLong, TooBusy."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(THREADS)
        turn = self._turns.setdefault(tenant, anyio.Lock())
        async with AsyncExitStack() as held:
            try:
                with anyio.fail_after(self._patience):
                    await held.enter_async_context(turn)
                    await held.enter_async_context(self._limiter)
            except TimeoutError as error:
                raise TooBusy from error
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
