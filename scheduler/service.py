"""The engine's async face: places in the queue, streams of events, health, draining.

Lives on the event loop; the engine thread reaches it through ``call_soon_threadsafe`` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio

from engine import device
from engine.adapter_files import AdapterError
from engine.adapter_store import AdapterState
from engine.engine import Engine
from engine.generation_config import sampling_defaults
from engine.loader import LoadError
from engine.start import EngineOptions, start_engine
from engine.tokenizer import Tokenizer
from engine.variant import Variant

from .events import Event, Finished, FinishReason
from .info import AdapterInfo, Health, ModelInfo, ServiceConfig
from .metrics import Gauges, Metrics
from .request import Request
from .scheduler import Scheduler
from .streams import EngineDead, QueueFull, RequestStream, Reservation, Unfit, UnknownAdapter
from .worker import Abort, SchedulerLike, Worker

T = TypeVar("T")

STOP_TIMEOUT = 10.0  # seconds that a last step may take


class LoadFailed(Exception):
    """The model could not be loaded; the text is one line that says what to do."""


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
        self.adapters: dict[str, AdapterInfo] = {}
        self._streams: dict[str, RequestStream] = {}
        self._left = asyncio.Event()  # set, and replaced, when a request ends
        self._calls: set[asyncio.Future[Any]] = set()
        self._draining = False
        self._error: str | None = None
        self._most_tokens = 0
        self._worker: Worker | None = None
        self._engine: Engine | None = None  # for the engine thread alone
        self._drafts: tuple[str | None, ...] = (None,)
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

    def resolve(self, model: str, adapter: str | None = None) -> str | None:
        """The adapter that a request's ``model`` and ``adapter`` mean, None for the base.

        An adapter is also a model: ``BASE:ADAPTER`` or ``ADAPTER``. Raises UnknownAdapter.
        """
        base = self.config.served_model_name
        named = adapter if model == base else model.removeprefix(f"{base}:")
        if named is not None and named not in self.adapters:
            raise UnknownAdapter(named)
        if adapter is not None and adapter != named:
            raise UnknownAdapter(adapter)
        return named

    async def load_adapter(self, name: str, path: str, *, pinned: bool) -> None:
        """Makes an adapter known while others are served. Raises AdapterError, EngineDead."""
        await self._on_thread(lambda e: e.adapters.register(name, Path(path), pinned=pinned))
        self._add_adapter(name, path)

    async def pin_adapter(self, name: str, pinned: bool) -> None:
        """Keeps an adapter in memory, or allows it to leave. Raises AdapterError, EngineDead."""
        if name not in self.adapters:
            raise UnknownAdapter(name)
        await self._on_thread(lambda e: e.adapters.pin(name, pinned))

    async def unload_adapter(self, name: str) -> None:
        """Takes no more requests for an adapter, and forgets it once those it has have ended.

        Raises UnknownAdapter, EngineDead.
        """
        if self.adapters.pop(name, None) is None:
            raise UnknownAdapter(name)
        while any(s.request.variant.adapter == name for s in self._streams.values()):
            await self._left.wait()
        await self._on_thread(lambda e: e.adapters.unregister(name))

    async def adapter_states(self) -> list[AdapterState]:
        """All adapters as they are just now. Raises EngineDead."""
        return await self._on_thread(lambda e: e.adapters.states())

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

    def enqueue(self, request: Request) -> RequestStream:
        """Hands a request to the engine. Raises Unfit, UnknownAdapter, EngineDead."""
        self._check_alive()
        assert self._worker is not None
        adapter = request.variant.adapter
        if adapter is not None and adapter not in self.adapters:
            raise UnknownAdapter(adapter)
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
        self._left.set()
        self._left = asyncio.Event()
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
        for call in self._calls:
            call.set_exception(EngineDead())
        self._calls.clear()
        self.died.set()

    def _add_adapter(self, name: str, path: str) -> None:
        self.adapters[name] = AdapterInfo(name, path, int(time.time()))
        for draft in self._drafts:
            self.metrics.of(Variant(name, draft))

    async def _on_thread(self, work: Callable[[Engine], T]) -> T:
        """The result of ``work``, done on the engine thread between two steps."""
        self._check_alive()
        assert self._worker is not None and self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.add(future)

        def settle(settled: Callable[[], None]) -> None:
            if future in self._calls:
                self._calls.discard(future)
                settled()

        def run() -> None:
            assert self._engine is not None
            try:
                result = work(self._engine)
            except AdapterError as error:
                refusal = error
                self._call(settle, lambda: future.set_exception(refusal))
            else:
                self._call(settle, lambda: future.set_result(result))

        self._worker.send(run)
        return await asyncio.shield(future)

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
            adapter_slots=config.adapter_slots,
            draft_model=config.draft_model,
            draft_name=config.draft_name,
            num_draft_tokens=config.num_draft_tokens,
        )
        started = start_engine(options, self._progress)
        engine, loaded = started.engine, started.loaded
        self._engine = engine
        self._drafts = (None, *started.drafts.names)
        for draft in self._drafts:
            self.metrics.of(Variant(draft=draft))
        for name, path in config.adapters:
            self._progress(f"reading adapter {name}")
            engine.adapters.register(name, Path(path))
            self._add_adapter(name, path)
        scheduler = Scheduler(
            engine,
            max_rows=config.max_rows,
            stall_target=config.stall_target_ms / 1000,
            stats=self.metrics,
        )
        self.tokenizer = Tokenizer(loaded.tokenizer, system_boundary=engine.stateful)
        self._most_tokens = engine.budget.most_tokens
        self.info = ModelInfo(
            name=config.served_model_name,
            root=config.model,
            max_model_len=loaded.max_context,
            vocab_size=loaded.vocab_size,
            eos_token_ids=loaded.eos_token_ids,
            attention=engine.attention,
            created=int(time.time()),
            kv_memory=engine.budget.limit,
            defaults=sampling_defaults(loaded.path),
            drafts=started.drafts,
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
                evicted_tokens=engine.forest.evicted_tokens,
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
    if isinstance(error, LoadError | AdapterError):
        return LoadFailed(str(error))
    return LoadFailed(f"loading failed: {type(error).__name__}: {error}")
