"""One configured model on the engine thread, loaded or not, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from .door import Door, Hold
from .entry import Entry
from .info import ModelConfig, ModelState
from .live import AdapterFiles, Live, LoadedModel
from .metrics import Gauges

FIRST_RETRY, LAST_RETRY = 2.0, 60.0  # seconds after a failure within which nothing is tried


class Failure(NamedTuple):
    """Why a model could not be loaded, and in how many seconds that is tried again at most."""

    reason: str
    retry_after: float


class Change(NamedTuple):
    """What became of ``model``, and of the ``holds`` that waited for it.

    ``facts`` are set while it is loaded; ``failure`` is set where loading it failed, or was
    refused because it failed a moment ago.
    """

    model: str
    kind: Literal["loaded", "held", "failed", "refused", "unloaded"]
    facts: LoadedModel | None = None
    failure: Failure | None = None
    holds: tuple[Hold, ...] = ()


class Member:
    """A model of the pool. Engine thread only, but for its door."""

    def __init__(self, config: ModelConfig, door: Door) -> None:
        self.config = config
        self.door = door
        self.adapters = {name: AdapterFiles(path) for name, path in config.adapters}
        self.live: Live | None = None
        self.waiting: list[Hold] = []  # for it to be loaded
        self.leaving = False  # unloaded as soon as it is idle
        self.used = 0  # when, in the pool's count of uses
        self.passed_over = 0  # times that others gave memory back, and it was not enough
        self.failure: Failure | None = None
        self.retry_at = 0.0
        self._evicted = 0  # tokens, before it was last unloaded

    @property
    def name(self) -> str:
        """Under which it is served."""
        return self.config.name

    @property
    def taken(self) -> bool:
        """Whether a request has it, or is about to; those that wait for a load do not."""
        works = self.live is not None and self.live.scheduler.has_work
        return works or self.door.holds > len(self.waiting)

    @property
    def ready(self) -> bool:
        """Whether its scheduler has anything to do."""
        if self.live is None:
            return False
        return self.live.scheduler.has_work and not self.live.scheduler.stalled

    def take_waiting(self) -> tuple[Hold, ...]:
        """The holds that waited, which are told now."""
        holds, self.waiting = tuple(self.waiting), []
        return holds

    def fail(self, reason: str, now: float) -> Change:
        """Loading did not work: whoever waited goes, and for a while nobody else tries."""
        last = self.failure.retry_after if self.failure is not None else 0.0
        wait = min(max(2 * last, FIRST_RETRY), LAST_RETRY)
        self.failure, self.retry_at = Failure(reason, wait), now + wait
        holds = self.take_waiting()
        for hold in holds:
            self.door.leave(hold)
        return Change(self.name, "failed", failure=self.failure, holds=holds)

    def start(self, live: Live) -> Change:
        """It is loaded: whoever waited goes on."""
        self.live, self.failure = live, None
        self.door.open()
        return Change(self.name, "loaded", live.facts, holds=self.take_waiting())

    def close(self) -> int:
        """Gives all memory back; the bytes of the weights."""
        assert self.live is not None and not self.live.scheduler.has_work
        live, self.live = self.live, None
        self.leaving = False
        self._evicted += live.engine.forest.evicted_tokens
        live.engine.close()
        return live.weights

    def gauges(self) -> Gauges:
        """A picture of it."""
        if self.live is None:
            waiting = len(self.waiting)
            return Gauges(waiting=waiting, deferred=waiting, evicted_tokens=self._evicted)
        scheduler, memory = self.live.scheduler, self.live.engine.memory()
        return Gauges(
            running=scheduler.running,
            waiting=len(scheduler.waiting) + len(self.waiting),
            lent=memory.lent,
            owned=memory.owned,
            cached=memory.cached,
            evicted_tokens=self._evicted + self.live.engine.forest.evicted_tokens,
            weights=self.live.weights,
            loaded=1,
            deferred=sum(e.following for e in scheduler.waiting) + len(self.waiting),
            token_bytes=self.live.engine.token_bytes,
            running_adapters=_adapters((*scheduler.prefilling, *scheduler.decoding)),
            waiting_adapters=_adapters(scheduler.waiting),
        )

    def state(self, *, loading: bool) -> ModelState:
        """How it is, for an operator."""
        live, gauges = self.live, self.gauges()
        state: Literal["unloaded", "loading", "loaded", "unloading"] = "unloaded"
        if live is not None:
            state = "unloading" if self.leaving else "loaded"
        elif loading:
            state = "loading"
        return ModelState(
            self.name,
            self.config.model,
            state,
            self.config.keep_loaded,
            gauges.weights,
            gauges.lent + gauges.owned + gauges.cached,
            gauges.running + gauges.waiting,
            None if self.failure is None else self.failure.reason,
        )


def _adapters(entries: Iterable[Entry]) -> tuple[str, ...]:
    names = {entry.request.variant.adapter for entry in entries}
    return tuple(sorted(name for name in names if name is not None))
