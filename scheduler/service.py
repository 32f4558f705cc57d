"""The engine's async face: places in the queue, streams of events, health, draining.

Lives on the event loop; the engine thread reaches it through ``call_soon_threadsafe`` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple

import anyio

from engine import device
from engine.generation_config import sampling_defaults
from engine.loader import LoadError
from engine.params import SamplingParams
from engine.start import EngineOptions, start_engine
from engine.tokenizer import Tokenizer

from .events import Event, Finished
from .metrics import Gauges, Metrics
from .request import Request
from .scheduler import Scheduler
from .worker import SchedulerLike, Worker

STOP_TIMEOUT = 10.0  # seconds that a last step may take


class QueueFull(Exception):
    """No place is left in the queue."""


class Unfit(Exception):
    """The prompt can never fit the KV memory; the text may be shown to the client."""


class EngineDead(Exception):
    """The engine is not running (any more), or the server is draining."""


class LoadFailed(Exception):
    """The model could not be loaded; the text is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What is served and within which limits; ``kv_memory`` in bytes, None: as recommended."""

    model: str
    served_model_name: str
    kv_memory: int | None = None
    prefix_cache: bool = True
    max_rows: int = 64
    max_queue: int = 256
    stall_target_ms: float = 100.0
    dtype: str | None = None
    trust_remote_code: bool = False
    max_context: int | None = None


class ModelInfo(NamedTuple):
    """The served model as ``/v1/models`` shows it.

    ``created`` is in Unix seconds, ``kv_memory`` in bytes; ``defaults`` hold where a request
    does not say how tokens are chosen.
    """

    name: str
    root: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    attention: Literal["lent", "copied"]
    created: int
    kv_memory: int
    defaults: SamplingParams


class Health(NamedTuple):
    """The state of the service; ``heartbeat_age`` in seconds."""

    alive: bool
    loaded: bool
    ready: bool
    draining: bool
    heartbeat_age: float
    error: str | None
    running: int
    waiting: int


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


class Reservation:
    """Places in the queue, taken before templating; what is not used goes back on exit."""

    def __init__(self, service: Service, places: int) -> None:
        self._service = service
        self._left = places

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._service._outstanding -= self._left
        self._left = 0

    def submit(self, request: Request) -> RequestStream:
        """Uses one place. Raises Unfit for a prompt that never fits, EngineDead."""
        assert self._left > 0
        stream = self._service._submit(request)
        self._left -= 1
        return stream


class Service:
    """Starts the engine thread and speaks with it; everything here runs on the event loop."""

    info: ModelInfo
    tokenizer: Tokenizer

    def __init__(
        self, config: ServiceConfig, metrics: Metrics, progress: Callable[[str], None]
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.died = anyio.Event()
        self._progress = progress
        self._outstanding = 0
        self._streams: dict[str, RequestStream] = {}
        self._draining = False
        self._error: str | None = None
        self._most_tokens = 0
        self._worker: Worker | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Loads the model on the engine thread; raises LoadFailed."""
        self.metrics.start(self.config.served_model_name)
        loop = self._loop = asyncio.get_running_loop()
        self._loaded = loop.create_future()
        self._worker = Worker(self._build, self._on_engine, self._on_ready, self._on_death)
        self._worker.start()
        await self._loaded

    def reserve(self, places: int = 1) -> Reservation:
        """Takes places in the queue. Raises QueueFull, EngineDead."""
        self._check_alive()
        limit = self.config.max_rows + self.config.max_queue
        if self._outstanding + places > limit:
            raise QueueFull
        self._outstanding += places
        return Reservation(self, places)

    @property
    def outstanding(self) -> int:
        """Places in use: requests from their reservation to their terminal event."""
        return self._outstanding

    def abort(self, request_id: str) -> None:
        """Ends a request within one step; one that is unknown or over is left alone."""
        if request_id in self._streams and self._worker is not None:
            self._worker.send(request_id)

    def health(self) -> Health:
        """How the service is; costs nothing, enqueues nothing."""
        worker = self._worker
        gauges = worker.gauges if worker is not None else Gauges()
        loaded = self._loaded is not None and self._loaded.done() and self._error is None
        return Health(
            alive=self._error is None,
            loaded=loaded,
            ready=loaded and not self._draining,
            draining=self._draining,
            heartbeat_age=worker.heartbeat_age if worker is not None else 0.0,
            error=self._error,
            running=gauges.running,
            waiting=gauges.waiting,
        )

    def observe(self) -> None:
        """Brings the gauges of the metrics up to date, for a scrape."""
        if self._worker is not None:
            self.metrics.observe(
                self._worker.gauges,
                heartbeat_age=self._worker.heartbeat_age,
                healthy=self._error is None,
            )

    async def drain(self, timeout: float) -> None:
        """Takes nothing new, waits for what runs, then ends the rest with an error."""
        self._draining = True
        if self._streams:
            self._idle.clear()
            with anyio.move_on_after(timeout):
                await self._idle.wait()
        for stream in list(self._streams.values()):
            self.abort(stream.request.id)
            self._fail(stream, "The server is shutting down.")

    async def stop(self) -> None:
        """Ends the engine thread."""
        if self._worker is not None:
            self._worker.stop()
            await anyio.to_thread.run_sync(self._worker.join, STOP_TIMEOUT)

    # on the event loop

    def _check_alive(self) -> None:
        if self._error is not None or self._draining or self._worker is None:
            raise EngineDead

    def _submit(self, request: Request) -> RequestStream:
        self._check_alive()
        assert self._worker is not None
        if len(request.prompt) > self._most_tokens:
            raise Unfit(
                f"The prompt has {len(request.prompt)} tokens; the KV memory of this server "
                f"holds at most {self._most_tokens}."
            )
        stream = self._streams[request.id] = RequestStream(request)
        self._worker.send(request)
        return stream

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is not None:
                if isinstance(event, Finished):
                    self._close(stream)
                stream.push(event)

    def _close(self, stream: RequestStream) -> None:
        del self._streams[stream.request.id]
        self._outstanding -= 1
        if not self._streams:
            self._idle.set()

    def _fail(self, stream: RequestStream, message: str) -> None:
        self._close(stream)
        prompt = len(stream.request.prompt)
        stream.push(Finished(stream.request.id, "error", prompt, 0, 0, message))

    def _dead(self, error: BaseException) -> None:
        assert self._loaded is not None
        if not self._loaded.done():
            self._error = str(error)
            self._loaded.set_exception(_load_failure(error))
            return
        self._error = f"{type(error).__name__}: {error}"
        for stream in list(self._streams.values()):
            self._fail(stream, "The engine failed.")
        self.died.set()

    # on the engine thread

    def _build(self) -> tuple[SchedulerLike, Callable[[], Gauges]]:
        config = self.config
        options = EngineOptions(
            model=config.model,
            kv_memory=config.kv_memory,
            prefix_cache=config.prefix_cache,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            max_context=config.max_context,
        )
        started = start_engine(options, self._progress)
        engine, loaded = started.engine, started.loaded
        scheduler = Scheduler(
            engine,
            max_rows=config.max_rows,
            stall_target=config.stall_target_ms / 1000,
            stats=self.metrics,
        )
        self.tokenizer = Tokenizer(loaded.tokenizer, system_boundary=engine.stateful)
        self._most_tokens = engine.most_tokens
        self.info = ModelInfo(
            name=config.served_model_name,
            root=config.model,
            max_model_len=loaded.max_context,
            vocab_size=loaded.vocab_size,
            eos_token_ids=loaded.eos_token_ids,
            attention=engine.attention,
            created=int(time.time()),
            kv_memory=engine.kv_memory,
            defaults=sampling_defaults(loaded.path),
        )

        def picture() -> Gauges:
            memory = engine.memory()
            return Gauges(
                running=scheduler.running,
                waiting=len(scheduler.waiting),
                lent=memory.lent,
                owned=memory.owned,
                cached=memory.cached,
                free=memory.free,
                evicted_tokens=engine.cache.evicted_tokens,
                active_memory=device.active_memory(),
                weights=started.weights,
            )

        return scheduler, picture

    def _on_engine(self, events: list[Event]) -> None:
        self._call(self._dispatch, events)

    def _on_ready(self) -> None:
        assert self._loaded is not None
        self._call(self._loaded.set_result, None)

    def _on_death(self, error: BaseException) -> None:
        self._call(self._dead, error)

    def _call(self, function: Callable[..., Any], argument: Any) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)


def _load_failure(error: BaseException) -> LoadFailed:
    if isinstance(error, LoadError):
        return LoadFailed(str(error))
    return LoadFailed(f"loading failed: {type(error).__name__}: {error}")
