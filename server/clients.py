"""Work that ends when its client does: uvicorn tells of a hang-up only to who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up, or does not read, before its reply was complete."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up; then ClientGone.

    The request's body must have been read.
    """
    watcher = asyncio.create_task(_hang_up(receive))
    worker = asyncio.create_task(work)
    try:
        await asyncio.wait({watcher, worker}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientGone
    finally:
        watcher.cancel()
        worker.cancel()
        await asyncio.wait({watcher, worker})
        if not worker.cancelled():
            worker.exception()  # looked at, so that nobody reports it as forgotten


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
