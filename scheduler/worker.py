"""The engine thread: loads models, steps the scheduler, hands events to the event loop.

It is the only thread that touches MLX: since MLX 0.31.2 streams are thread-local, and lazy
arrays made on one thread do not evaluate on another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from .events import Event, FinishReason
from .metrics import Gauges
from .request import Request


class Abort(NamedTuple):
    """Ends a request, for ``reason``."""

    request_id: str
    reason: FinishReason = "abort"


Picture = Callable[[], Mapping[str, Gauges]]
"""Takes a picture of all models for the gauges."""

Message = Request | Abort | Callable[[], None]
"""A request, the end of one, or work to do between two steps."""

log = logging.getLogger("commons.engine")
GAUGE_INTERVAL = 0.25  # seconds between two pictures for the gauges


class SchedulerLike(Protocol):
    """What the engine thread drives."""

    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str, reason: FinishReason = "abort") -> None: ...
    def step(self) -> list[Event]: ...
    @property
    def has_work(self) -> bool: ...


class Worker:
    """Runs ``build`` and then its scheduler on a thread of its own.

    ``deliver`` is called on that thread with the events of each step, ``died`` once if it
    fails. ``build`` returns the scheduler and a function that takes a picture for the gauges.
    """

    def __init__(
        self,
        build: Callable[[], tuple[SchedulerLike, Picture]],
        deliver: Callable[[list[Event]], None],
        ready: Callable[[], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._build = build
        self._deliver = deliver
        self._ready = ready
        self._died = died
        self._inbox: deque[Message] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._beat = time.monotonic()
        self.gauges: Mapping[str, Gauges] = {}
        # A daemon: a hung device call must not keep the process alive after its exit code.
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread; ``ready`` or ``died`` tells how that went."""
        self._thread.start()

    def send(self, message: Message) -> None:
        """Puts something into the inbox. Never blocks."""
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    def stop(self) -> None:
        """Asks the thread to end after the step it is in."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def join(self, timeout: float) -> bool:
        """Waits for the thread; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the thread last finished a step or found nothing to do."""
        return time.monotonic() - self._beat

    def _main(self) -> None:
        try:
            scheduler, picture = self._build()
            self._beat = time.monotonic()
            self.gauges = picture()
            self._ready()
            self._loop(scheduler, picture)
        except BaseException as error:  # the thread's last word: whoever waits must hear of it
            log.debug("engine thread failed", exc_info=True)
            self._died(error)

    def _loop(self, scheduler: SchedulerLike, picture: Picture) -> None:
        pictured = 0.0
        while self._receive(scheduler):
            events = scheduler.step() if scheduler.has_work else []
            self._beat = time.monotonic()
            if self._beat - pictured > GAUGE_INTERVAL or not scheduler.has_work:
                self.gauges, pictured = picture(), self._beat
            if events:
                self._deliver(events)

    def _receive(self, scheduler: SchedulerLike) -> bool:
        """Takes in the inbox; sleeps while there is nothing to do; False at the end."""
        with self._wake:
            while not (self._inbox or self._stopping or scheduler.has_work):
                self._wake.wait(1.0)
                self._beat = time.monotonic()
            if self._stopping:
                return False
            messages = list(self._inbox)
            self._inbox.clear()
        for message in messages:
            if isinstance(message, Request):
                scheduler.add(message)
            elif isinstance(message, Abort):
                scheduler.abort(*message)
            else:
                message()
        return True
