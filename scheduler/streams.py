"""What a caller holds: places in the queue, and the events of one request. On the event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from .events import Event, Finished
from .limits import Admission
from .request import Request
from .tenant import Tenant


class QueueFull(Exception):
    """No place is left in the queue."""


class Unfit(Exception):
    """The prompt can never fit the KV memory; the text may be shown to the client."""


class EngineDead(Exception):
    """The engine is not running (any more), or the server is draining."""


class UnknownModel(Exception):
    """A model that is not configured."""


class UnknownAdapter(Exception):
    """An adapter that is not there, or not any more."""


class ModelFailed(Exception):
    """A model that could not be loaded; the text says why and may be shown to the client.

    ``retry_after`` is in seconds; nothing is tried before.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class RequestStream:
    """The events of one request; each item is a list of all that came since the last one."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._over = False

    def push(self, event: Event) -> None:
        """Adds an event; on the event loop."""
        self._events.append(event)
        self._arrived.set()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> list[Event]:
        if self._over:
            raise StopAsyncIteration
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        self._over = isinstance(events[-1], Finished)
        return events


class Queue(Protocol):
    """What places are taken from."""

    def give_back(self, places: int) -> None:
        """Makes places free again."""
        ...

    def enqueue(self, request: Request) -> RequestStream:
        """Hands a request to the engine; its place is free again at its end."""
        ...


class Reservation:
    """Places in the queue, taken before templating; what is not used goes back on exit.

    An exit with an error refuses the response: then its tenant pays for none of its requests.
    """

    def __init__(self, queue: Queue, places: int, admission: Admission) -> None:
        self._queue = queue
        self._left = places
        self._admission = admission

    @property
    def tenant(self) -> Tenant:
        """For whom the places are."""
        return self._admission.tenant

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.give_back(self._left)
        self._left = 0
        self._admission.close(refused=error is not None)

    def submit(self, request: Request) -> RequestStream:
        """Uses one place. Raises Unfit for a prompt that never fits, UnknownAdapter, EngineDead."""
        assert self._left > 0
        self._admission.submit(request.id)
        try:
            stream = self._queue.enqueue(request)
        except BaseException:  # whatever it is: what the tenant may have at once must come back
            self._admission.withdraw(request.id)
            raise
        self._left -= 1
        return stream
