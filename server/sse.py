"""A response of server-sent events, written by one or several producers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, NoReturn

import anyio
from starlette.types import Receive, Send

from .clients import ClientGone, watched, while_connected

SLOW_READER = 120.0  # seconds that a client may leave its connection full
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

Emit = Callable[[bytes], Awaitable[None]]
Producer = Callable[[Emit], Coroutine[Any, Any, None]]
Last = Callable[[], bytes]


class KeepAlive(NamedTuple):
    """What is sent after how many seconds of silence."""

    data: bytes
    seconds: float


COMMENT = KeepAlive(b": keep-alive\n\n", 15.0)


def event(data: bytes) -> bytes:
    """One event of the OpenAI dialect."""
    return b"data: " + data + b"\n\n"


class EventStream:
    """Sends what producers emit. The response starts with the first event, so that an error
    that comes before it can still be answered with a status of its own."""

    def __init__(self, receive: Receive, send: Send, keep_alive: KeepAlive = COMMENT) -> None:
        self.started = False
        self._finished = False
        self._receive = receive
        self._send = send
        self._alive = keep_alive
        self._last = 0.0

    async def run(self, producers: Sequence[Producer], last: Last) -> None:
        """Runs ``producers`` side by side and ends the response with what ``last`` then says.

        What a producer raises cancels the others. Raises ClientGone where the client hangs up
        or stops reading.
        """
        try:
            await while_connected(
                self._receive, watched(self._produce(producers, last), self._keep_alive())
            )
        except ClientGone:
            if not self._finished:  # else it had the whole reply before
                raise

    async def emit(self, data: bytes) -> None:
        """Sends one or more whole events."""
        await self._emit(data, more=True)

    async def finish(self, data: bytes) -> None:
        """Sends the last events and the end of the body as one."""
        await self._emit(data, more=False)
        self._finished = True

    async def _emit(self, data: bytes, *, more: bool) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        self._last = anyio.current_time()
        try:
            with anyio.fail_after(SLOW_READER):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError as error:
            raise ClientGone from error

    async def _produce(self, producers: Sequence[Producer], last: Last) -> None:
        if len(producers) == 1:
            await producers[0](self.emit)
        else:
            await _side_by_side(producers, self.emit)
        await self.finish(last())

    async def _keep_alive(self) -> NoReturn:
        self._last = anyio.current_time()
        while True:
            silent = anyio.current_time() - self._last
            if silent >= self._alive.seconds:
                await self.emit(self._alive.data)
                silent = 0.0
            await anyio.sleep(self._alive.seconds - silent)


async def _side_by_side(producers: Sequence[Producer], emit: Emit) -> None:
    tasks = [asyncio.create_task(producer(emit)) for producer in producers]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
