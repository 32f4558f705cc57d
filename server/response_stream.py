"""A response of ``/v1/responses`` as a stream of numbered events."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .clients import ClientGone
from .dialect import encode
from .response_items import Event
from .response_reply import Reply
from .sse import Emit, EventStream


class ResponseStream(Response):
    """Tells at once that the response is there, so that its id can be used to cancel it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply
        self._number = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await EventStream(receive, send).run([self._produce], bytes)
        except ClientGone:
            self._reply.generation.metrics.client_disconnect()
        finally:
            self._reply.close()

    async def _produce(self, emit: Emit) -> None:
        """Emits all events; what is ready together is sent together."""
        begun = self._reply.response.running()
        first = ("response.created", "response.in_progress")
        await emit(self._data([{"type": kind, "response": begun} for kind in first]))
        async for events in self._reply.events():
            await emit(self._data(events))

    def _data(self, events: list[Event]) -> bytes:
        lines = []
        for event in events:
            numbered = event | {"sequence_number": self._number}
            self._number += 1
            lines.append(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), encode(numbered)))
        return b"".join(lines)
