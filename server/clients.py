"""Work that ends when its client does: uvicorn tells of a hang-up only to who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up, or does not read, before its reply was complete."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up; then ClientGone.

    The request's body must have been read.
    """
    return await watched(work, _hang_up(receive))


async def watched(work: Coroutine[Any, Any, T], watch: Coroutine[Any, Any, NoReturn]) -> T:
    """The result of ``work``, unless ``watch`` raises before; the other one is cancelled."""
    worker, watcher = asyncio.create_task(work), asyncio.create_task(watch)
    both: set[asyncio.Task[Any]] = {worker, watcher}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else watcher.result()
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        for task in both:
            if not task.cancelled():
                task.exception()  # looked at, so that nobody reports it as forgotten


async def _hang_up(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone
