"""One response of ``/v1/responses`` under way, until it is whole, cut off, cancelled or failed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from engine.tokenizer import Prompt, Tokenizer
from scheduler.events import Token

from .dialect import encode
from .errors import ApiError
from .generation import Generation
from .logprobs import chat_logprobs
from .output import Delta
from .response_input import Item
from .response_items import Event, Items
from .response_object import ResponseObject
from .response_store import ResponseStore, Running


class Place(NamedTuple):
    """Where a response is noted and, where ``kept``, stored: with the items that its model got,
    of which the last ``new`` came with it."""

    store: ResponseStore
    tenant: str
    kept: bool
    given: Sequence[Item]
    new: int


class Reply:
    """A response: its output as it grows, and its end, which the store is told of."""

    def __init__(
        self,
        generation: Generation,
        prompt: Prompt,
        response: ResponseObject,
        items: Items,
        place: Place,
        logprobs: Tokenizer | None,
    ) -> None:
        self.generation = generation
        self.response = response
        self._prompt = prompt
        self._items = items
        self._place = place
        self._logprobs = logprobs
        self._silent: list[Token] = []  # seen, but not shown as text yet
        self._running = Running(generation.abort, self._now, place.kept)
        place.store.run(place.tenant, response.id, self._running)

    async def events(self) -> AsyncIterator[list[Event]]:
        """The reply's events as they come; the last tells how it ended.

        Failures of the server are an end, too.
        """
        (choice,) = self.generation.choices
        try:
            async for piece in choice.pieces():
                if events := self._add(piece.delta, piece.tokens):
                    yield events
        except ApiError as error:
            yield self._broken(error)
            return
        cut = choice.finish_reason == "length"
        yield self._end("incomplete" if cut else "completed")

    async def whole(self) -> dict[str, Any]:
        """The whole response. Raises ApiError where the server failed."""
        last: Event = {}
        async for events in self.events():
            last = events[-1]
        body: dict[str, Any] = last["response"]
        if body["status"] == "failed":
            error = body["error"]
            raise ApiError(503, error["message"], "server_error", "engine_error")
        return body

    def close(self) -> None:
        """Ends what still runs, for whoever asked has gone or has everything."""
        self.generation.abort()
        self._place.store.end(self._place.tenant, self.response.id, None)

    def _now(self) -> dict[str, Any]:
        return self.response.running() | {"output": self._items.output}

    def _add(self, delta: Delta, tokens: list[Token]) -> list[Event]:
        if self._logprobs is None:
            return self._items.add(delta)
        told: list[Item] = []
        self._silent += tokens
        if delta:
            shown, self._silent = self._silent, []
            if delta.text:
                told = chat_logprobs(self._logprobs, shown)["content"]
        return self._items.add(delta, told)

    def _end(self, status: str) -> list[Event]:
        events = self._items.end("completed" if status == "completed" else "incomplete")
        usage = self.generation.usage([self._prompt])
        body = self.response.ended(status, self._items.output, usage)
        self._note(body)
        # There is no event for a cancelled response; the status tells.
        kind = "completed" if status == "completed" else "incomplete"
        return [*events, {"type": f"response.{kind}", "response": body}]

    def _broken(self, error: ApiError) -> list[Event]:
        if self._running.cancelled:
            return self._end("cancelled")
        events = self._items.end("incomplete")
        body = self.response.failed(error, self._items.output)
        self._note(body)
        return [*events, {"type": "response.failed", "response": body}]

    def _note(self, body: dict[str, Any]) -> None:
        place, name, data = self._place, self.response.id, encode(body)
        if place.kept:
            place.store.keep(place.tenant, name, data, place.given, place.new)
        place.store.end(place.tenant, name, data)
