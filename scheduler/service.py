"""The engine's async face: places in the queue, streams of events, health, draining.

Lives on the event loop; the engine thread reaches it through ``call_soon_threadsafe`` alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import anyio

from engine import device
from engine.adapter_files import AdapterError
from engine.loader import LoadError
from engine.model_memory import ModelMemory
from engine.pieces import Pieces

from .door import Hold
from .events import Event, Finished, FinishReason
from .info import Health, ServiceConfig
from .live import Live, going_live
from .members import Change, Member
from .metrics import Gauges, Metrics
from .pool import ModelPool
from .request import Request
from .served import Catalogue, Served
from .streams import (
    EngineDead,
    ModelFailed,
    QueueFull,
    RequestStream,
    Reservation,
    Unfit,
    UnknownAdapter,
)
from .tenant import DEFAULT, Tenant
from .tenants import Tenants
from .use import Use
from .worker import Abort, SchedulerLike, Worker

log = logging.getLogger("commons.engine")
T = TypeVar("T")

STOP_TIMEOUT = 10.0  # seconds that a last step may take


class LoadFailed(Exception):
    """The main model could not be loaded; the text is one line that says what to do."""


class Service:
    """Starts the engine thread and speaks with it; everything here runs on the event loop."""

    def __init__(
        self, config: ServiceConfig, metrics: Metrics, progress: Callable[[str], None]
    ) -> None:
        self.config = config
        self.metrics = metrics
        models = [Served(c, metrics.model(c.name)) for c in config.all_models]
        self.models = Catalogue(models, config.aliases)
        self.died = anyio.Event()
        self.tenants = Tenants(config.tenants, metrics.registry)
        self._progress = progress
        self._outstanding = 0
        self._streams: dict[str, RequestStream] = {}
        self._left = asyncio.Event()  # set, and replaced, when a request or a model leaves
        self._calls: set[asyncio.Future[Any]] = set()
        self._waiting: dict[Hold, asyncio.Future[None]] = {}  # for models to be loaded
        self._draining = False
        self._error: str | None = None
        self._worker: Worker | None = None
        self._pool: ModelPool | None = None  # for the engine thread alone
        self._loaded: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Loads the models that stay loaded on the engine thread; raises LoadFailed."""
        loop = self._loop = asyncio.get_running_loop()
        self._loaded = loop.create_future()
        self._worker = Worker(self._build, self._on_engine, self._on_ready, self._on_death)
        self._worker.start()
        await self._loaded

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Takes over a changed set of tenants; requests that run go on as they were."""
        known = tuple(tenants)
        self.tenants.configure(known)
        self._send(lambda pool: pool.configure(known))

    def reserve(
        self, places: int = 1, tenant: Tenant = DEFAULT, estimated_tokens: int = 0
    ) -> Reservation:
        """Takes places in the queue, within the tenant's limits.

        ``estimated_tokens`` are those of all prompts. Raises QueueFull, OverLimit, EngineDead.
        """
        self.check_alive()
        limit = self.config.max_rows + self.config.max_queue
        if self._outstanding + places > limit:
            raise QueueFull
        rows = max(0, self.config.max_rows - self._outstanding)
        admission = self.tenants.reserve(tenant, places, estimated_tokens, rows)
        self._outstanding += places
        return Reservation(self, places, admission)

    def give_back(self, places: int) -> None:
        """Makes places free again that were not used."""
        self._outstanding -= places

    @property
    def outstanding(self) -> int:
        """Places in use: requests from their reservation to their terminal event."""
        return self._outstanding

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        """Ends a request within one step; one that is unknown or over is left alone."""
        if request_id in self._streams and self._worker is not None:
            self._worker.send(Abort(request_id, reason))

    def use(self, served: Served) -> Use:
        """What keeps a model loaded while requests for it are made, once it is."""
        return Use(self, served)

    def want(self, served: Served, hold: Hold) -> asyncio.Future[None]:
        """Has a model loaded. Raises EngineDead; the future may raise ModelFailed, EngineDead."""
        self.check_alive()
        assert self._loop is not None
        future = self._waiting[hold] = self._loop.create_future()
        self._send(lambda pool: pool.want(served.name, hold))
        return future

    def leave(self, served: Served, hold: Hold) -> None:
        """Lets go of a model, after everything that was handed over before."""
        self._waiting.pop(hold, None)
        self._send(lambda pool: pool.leave(served.name, hold))

    async def gone(self, condition: Callable[[], bool]) -> None:
        """Waits for ``condition``, which comes about when a request or a model leaves."""
        while not condition():
            self.check_alive()
            await self._left.wait()

    def requests(self) -> list[Request]:
        """All that have been accepted and have not ended."""
        return [stream.request for stream in self._streams.values()]

    def health(self) -> Health:
        """How the service is; costs nothing, enqueues nothing."""
        worker = self._worker
        gauges = list(worker.gauges.values()) if worker is not None else []
        loaded = self._loaded is not None and self._loaded.done() and self._error is None
        return Health(
            alive=self._error is None,
            loaded=loaded,
            ready=loaded and not self._draining,
            draining=self._draining,
            heartbeat_age=worker.heartbeat_age if worker is not None else 0.0,
            error=self._error,
            running=sum(g.running for g in gauges),
            waiting=sum(g.waiting for g in gauges),
        )

    def observe(self) -> None:
        """Brings the gauges of the metrics up to date, for a scrape."""
        self.tenants.observe()
        if self._worker is None:
            return
        picture = self._worker.gauges
        for served in self.models:
            served.metrics.observe(
                picture.get(served.name, Gauges()),
                heartbeat_age=self._worker.heartbeat_age,
                healthy=self._error is None,
            )

    async def drain(self, timeout: float) -> None:
        """Takes nothing new, waits for what runs, then ends the rest with an error."""
        self._draining = True
        self._turn_away(EngineDead())
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

    def check_alive(self) -> None:
        """Raises EngineDead where no more requests are taken."""
        if self._error is not None or self._draining or self._worker is None:
            raise EngineDead

    def enqueue(self, request: Request) -> RequestStream:
        """Hands a request to the engine, for a model in use.

        Raises Unfit, UnknownAdapter, EngineDead.
        """
        self.check_alive()
        served = self.models[request.model]
        assert self._worker is not None and served.facts is not None
        adapter = request.variant.adapter
        if adapter is not None and adapter not in served.adapters:
            raise UnknownAdapter(adapter)
        if len(request.prompt) > served.facts.most_tokens:
            raise Unfit(
                f"The prompt has {len(request.prompt)} tokens; the KV memory of this server "
                f"holds at most {served.facts.most_tokens}."
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
                self.tenants.note(event)
                stream.push(event)

    def _close(self, stream: RequestStream) -> None:
        del self._streams[stream.request.id]
        self._outstanding -= 1
        self._tell_left()
        if not self._streams:
            self._idle.set()

    def _fail(self, stream: RequestStream, message: str) -> None:
        self._close(stream)
        prompt = len(stream.request.prompt)
        end = Finished(stream.request.id, "error", prompt, 0, 0, message)
        self.tenants.note(end)
        stream.push(end)

    def _dead(self, error: BaseException) -> None:
        assert self._loaded is not None
        if not self._loaded.done():
            self._error = str(error)
            self._loaded.set_exception(_load_failure(error))
            return
        self._error = f"{type(error).__name__}: {error}"
        for stream in list(self._streams.values()):
            self._fail(stream, "The engine failed.")
        for call in self._calls:
            call.set_exception(EngineDead())
        self._calls.clear()
        self._turn_away(EngineDead())
        self._tell_left()
        self.died.set()

    def _turn_away(self, error: Exception) -> None:
        """Ends the waiting of all who wait for a model."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    def _tell_left(self) -> None:
        self._left.set()
        self._left = asyncio.Event()

    def _changed(self, change: Change) -> None:
        """Takes in what became of a model."""
        served, failure = self.models[change.model], change.failure
        if change.kind in ("loaded", "failed"):
            served.metrics.load(change.kind)
        elif change.kind == "unloaded":
            served.metrics.unload()
            served.unloads += 1
            self._tell_left()
        if failure is None:
            served.facts = change.facts
        for hold in change.holds:
            future = self._waiting.get(hold)
            if future is None or future.done():
                continue
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(ModelFailed(failure.reason, failure.retry_after))

    def _send(self, work: Callable[[ModelPool], None]) -> None:
        """Has something done on the engine thread between two steps."""

        def run() -> None:
            assert self._pool is not None
            work(self._pool)

        if self._worker is not None:
            self._worker.send(run)

    async def on_pool(self, work: Callable[[ModelPool], T]) -> T:
        """The result of ``work``, done on the engine thread between two steps.

        Raises what it raises of AdapterError, and EngineDead.
        """
        self.check_alive()
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.add(future)

        def settle(settled: Callable[[], None]) -> None:
            if future in self._calls:
                self._calls.discard(future)
                settled()

        def run(pool: ModelPool) -> None:
            try:
                result = work(pool)
            except AdapterError as error:
                refusal = error
                self._call(settle, lambda: future.set_exception(refusal))
            else:
                self._call(settle, lambda: future.set_result(result))

        self._send(run)
        return await asyncio.shield(future)

    # on the engine thread

    def _build(self) -> tuple[SchedulerLike, Callable[[], Mapping[str, Gauges]]]:
        config = self.config
        memory = ModelMemory(config.memory, config.kv_memory, several=bool(config.models))
        members = [Member(served.config, served.door) for served in self.models]
        pool = ModelPool(
            members,
            partial(self._open, memory),
            memory,
            tell=partial(self._call, self._changed),
            wake=lambda: self._send(lambda _: None),
        )
        pool.start()
        pool.configure(self.config.tenants)
        self._pool = pool

        def picture() -> Mapping[str, Gauges]:
            gauges = dict(pool.picture())
            main = self.models.main.name
            gauges[main] = gauges[main]._replace(active_memory=device.active_memory())
            return gauges

        return pool, picture

    def _open(self, memory: ModelMemory, member: Member) -> Pieces[Live]:
        starting = self._pool is None

        def progress(text: str) -> None:
            if starting:
                self._progress(text)
            else:
                log.info("%s: %s", member.name, text)

        stats = self.tenants.accounting(member.name, self.models[member.name].metrics)
        return going_live(member.config, member.adapters, self.config, memory, stats, progress)

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
    if isinstance(error, LoadError | AdapterError):
        return LoadFailed(str(error))
    return LoadFailed(f"loading failed: {type(error).__name__}: {error}")
