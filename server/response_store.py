"""Responses that clients may come back to: those that run, and the last ones of each tenant.

On the event loop. What is kept is JSON, so that its bytes are what it takes of memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from .dialect import encode
from .response_input import Item, Recall

MOST_RESPONSES = 1000  # of a tenant
MOST_BYTES = 64 << 20  # of a tenant
MOST_SECONDS = 24 * 3600.0
ENTRY = 256  # bytes that it takes to find an item by its id, beside the id, about


class Stored(NamedTuple):
    """A response that has ended, and the items that its model was given."""

    body: bytes
    input: bytes
    own: frozenset[str]  # ids of items that came with it, or out of it
    at: float

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.body) + len(self.input) + sum(ENTRY + len(name) for name in self.own)

    def items(self) -> list[Item]:
        """What its model was given."""
        items: list[Item] = msgspec.json.decode(self.input)
        return items

    def conversation(self) -> list[Item]:
        """The same, and what it answered."""
        output: list[Item] = msgspec.json.decode(self.body)["output"]
        return [*self.items(), *output]


class Running:
    """A response that has not ended. ``now`` is what there is of it; ``kept``: for all to see."""

    def __init__(
        self, abort: Callable[[], None], now: Callable[[], dict[str, Any]], kept: bool
    ) -> None:
        self.kept = kept
        self.cancelled = False
        self.now = now
        self._abort = abort
        self._ended: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    async def cancel(self) -> bytes | None:
        """Aborts it; its object at the end, None where its client has gone."""
        self.cancelled = True
        self._abort()
        return await asyncio.shield(self._ended)

    def end(self, body: bytes | None) -> None:
        """Tells those who wait for it."""
        if not self._ended.done():
            self._ended.set_result(body)


class _Shelf:
    """The responses of one tenant, the oldest first."""

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}
        self.stored: OrderedDict[str, Stored] = OrderedDict()
        self._by_item: dict[str, str] = {}
        self._bytes = 0

    def add(self, name: str, stored: Stored) -> None:
        self.stored[name] = stored
        self._bytes += stored.size
        self._by_item.update(dict.fromkeys(stored.own, name))
        self.trim(stored.at)

    def remove(self, name: str) -> None:
        stored = self.stored.pop(name)
        self._bytes -= stored.size
        for item in stored.own:
            if self._by_item.get(item) == name:
                del self._by_item[item]

    def trim(self, now: float) -> None:
        while self.stored:
            name, oldest = next(iter(self.stored.items()))
            full = len(self.stored) > MOST_RESPONSES or self._bytes > MOST_BYTES
            if not full and now - oldest.at <= MOST_SECONDS:
                return
            self.remove(name)

    def recall(self) -> Recall:
        """Finds items by their ids; each response is read once, however many items are of it."""
        read: dict[str, dict[str, Item]] = {}

        def item(name: str) -> Item | None:
            holder = self._by_item.get(name)
            if holder is None:
                return None
            if holder not in read:
                read[holder] = {item["id"]: item for item in self.stored[holder].conversation()}
            return read[holder].get(name)

        return item


class ResponseStore:
    """All tenants' responses; what one has stored is not there for another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._shelves: defaultdict[str, _Shelf] = defaultdict(_Shelf)
        self._clock = clock

    def run(self, tenant: str, name: str, running: Running) -> None:
        """Notes a response that begins."""
        self._shelves[tenant].running[name] = running

    def end(self, tenant: str, name: str, body: bytes | None) -> None:
        """Notes that it has ended, as ``body``."""
        running = self._shelves[tenant].running.pop(name, None)
        if running is not None:
            running.end(body)

    def running(self, tenant: str, name: str) -> Running | None:
        """A response that has not ended."""
        return self._shelf(tenant).running.get(name)

    def keep(self, tenant: str, name: str, body: bytes, given: Sequence[Item], new: int) -> None:
        """Stores a response; the last ``new`` of the items ``given`` came with it.

        One that is larger than all that a tenant may store is not kept.
        """
        output: list[Item] = msgspec.json.decode(body)["output"]
        own = [*given[len(given) - new :], *output]
        names = frozenset(str(item["id"]) for item in own)
        stored = Stored(body, encode(given), names, self._clock())
        if stored.size <= MOST_BYTES:
            self._shelves[tenant].add(name, stored)

    def find(self, tenant: str, name: str) -> Stored | None:
        """A stored response."""
        return self._shelf(tenant).stored.get(name)

    def recall(self, tenant: str) -> Recall:
        """What finds stored items by their ids, for one request."""
        return self._shelf(tenant).recall()

    def delete(self, tenant: str, name: str) -> bool:
        """Forgets a stored response; whether it was there."""
        shelf = self._shelf(tenant)
        there = name in shelf.stored
        if there:
            shelf.remove(name)
        return there

    def _shelf(self, tenant: str) -> _Shelf:
        if tenant not in self._shelves:
            return _Shelf()
        shelf = self._shelves[tenant]
        shelf.trim(self._clock())
        return shelf
