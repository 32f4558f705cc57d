"""The life of the server process: load, serve, drain, and the code it ends with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from typing import NoReturn

import anyio
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from scheduler.metrics import Metrics
from scheduler.service import LoadFailed, Service

from .access import Access
from .app import create_app
from .config import ServerConfig
from .garbage import collect_seldom
from .http_counts import HttpCounts
from .launch import BACKLOG
from .reload import Reloader, warn_of_keys
from .startup import Startup
from .tracing import otlp
from .usage_store import UsageStore
from .vllm_counts import VllmMetrics
from .vllm_metrics import VllmNames

logger = logging.getLogger("commons.server")

KEEP_ALIVE = 75  # seconds; longer than the connection pools of the usual clients keep theirs
USAGE_EVERY = 5.0  # seconds; the usage of at most so long is lost in a crash
LAST_TRACES = 2.0  # seconds that a collector may take for them at the end
FLUSH = 5  # seconds that responses get to leave after the last of them is complete


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: a drain comes before its shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(config: ServerConfig, startup: Startup, listener: socket.socket) -> int:
    """Serves at ``listener`` until a signal or a failure; the exit code."""
    _raise_open_files()
    collect_seldom()
    return uvloop.run(_Process(config, startup, listener).run())


def _raise_open_files() -> None:
    """Lets there be as many connections as the system allows; mlx-lm has set a low limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a Mac has a limit of its own beside it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Process:
    def __init__(self, config: ServerConfig, startup: Startup, listener: socket.socket) -> None:
        self._config = config
        self._startup = startup
        self._listener = listener
        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        compatible = config.metrics_compat is not None
        metrics = VllmMetrics(registry, config.service) if compatible else Metrics(registry)
        self._service = Service(config.service, metrics, startup.progress)
        self._usage = UsageStore(self._service.tenants.usage, config.usage_db)
        self._access = Access(config.grants)
        self._access.on_change(self._service.configure)
        self._reloader: Reloader | None = None
        if config.reread is not None and config.config is not None:
            models = self._service.models
            self._reloader = Reloader(config, self._access, config.reread, models)
        self._reloads: set[asyncio.Task[None]] = set()
        self._tracing = None if config.otel_endpoint is None else otlp(config.otel_endpoint)
        app = create_app(
            self._service,
            VllmNames(registry) if compatible else registry,
            self._access,
            default_max_tokens=config.default_max_tokens,
            adapter_dir=config.adapter_dir,
            usage=self._usage,
            reloader=self._reloader,
            tracer=self._tracing,
            log_prompts=config.log_prompts,
        )
        self._server = _Server(
            uvicorn.Config(
                HttpCounts(app, registry) if compatible else app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=FLUSH,
            )
        )
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()

    async def run(self) -> int:
        """Runs everything; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        warn_of_keys(self._access)
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        keeping = asyncio.create_task(self._keep_usage())
        try:
            code = await self._until_end()
        finally:
            self._server.should_exit = True
            await serving
            await self._service.stop()
            keeping.cancel()
            await anyio.to_thread.run_sync(self._usage.flush)
            if self._tracing is not None:
                with anyio.move_on_after(LAST_TRACES):
                    await anyio.to_thread.run_sync(self._tracing.close, abandon_on_cancel=True)
        return code

    async def _keep_usage(self) -> NoReturn:
        while True:
            await anyio.sleep(USAGE_EVERY)
            await anyio.to_thread.run_sync(self._usage.flush)

    def _reload(self) -> None:
        if self._reloader is None:
            logger.warning("nothing to reload: the server was started without --config")
            return
        task = asyncio.create_task(self._reloader.on_signal())
        self._reloads.add(task)  # the loop itself keeps no hold on it
        task.add_done_callback(self._reloads.discard)

    async def _until_end(self) -> int:
        """Loads, then waits for a signal or the engine's death."""
        first = asyncio.create_task(self._signals.get())
        died = asyncio.create_task(self._service.died.wait())
        loading = asyncio.create_task(self._service.start())
        try:
            await asyncio.wait({first, loading}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                self._startup.failed("interrupted while loading")
                return 128 + first.result()
            loading.result()
            self._startup.ready(self._service.models, self._url())
            await asyncio.wait({first, died}, return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                self._startup.failed(f"the engine failed: {self._service.health().error}")
                return 1
            await self._drain()
            return 0
        except LoadFailed as error:
            self._startup.failed(str(error))
            return 1
        finally:
            for task in (first, died, loading):
                task.cancel()

    async def _drain(self) -> None:
        """Finishes what runs; a second signal, or the time limit, ends it."""
        running = self._service.outstanding
        limit = self._config.drain_timeout
        self._startup.note(
            f"stopping: {running} requests left, at most {limit:.0f} s; again to stop at once"
        )
        second = asyncio.create_task(self._signals.get())
        drained = asyncio.create_task(self._service.drain(limit))
        await asyncio.wait({second, drained}, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            drained.cancel()
            await asyncio.wait({drained})
            await self._service.drain(0.0)
        second.cancel()

    def _url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
