"""What an operator may do while the server runs: adapters and models come and go."""

from __future__ import annotations

from pathlib import Path

from engine.adapter_store import AdapterState, AdapterStore

from .info import ModelState
from .live import AdapterFiles
from .pool import ModelPool
from .served import Served
from .service import Service
from .streams import UnknownAdapter


class Administration:
    """On the event loop; everything raises EngineDead where the engine does not run."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self) -> list[ModelState]:
        """All models as they are just now."""
        return await self._service.on_pool(lambda pool: pool.states())

    async def load(self, served: Served) -> None:
        """Loads a model if it is not. Raises ModelFailed."""
        with self._service.use(served) as use:
            await use.wait()

    async def unload(self, served: Served) -> None:
        """Unloads a model that need not stay, once its requests have ended."""
        if served.facts is not None:
            before = served.unloads
            await self._service.on_pool(lambda pool: pool.unload(served.name))
            await self._service.gone(lambda: served.unloads > before)

    async def adapters(self, served: Served) -> list[AdapterState]:
        """The adapters of a loaded model as they are just now; none of one that is not loaded."""

        def states(pool: ModelPool) -> list[AdapterState]:
            live = pool.members[served.name].live
            return [] if live is None else live.engine.adapters.states()

        return await self._service.on_pool(states)

    async def load_adapter(self, served: Served, name: str, path: str, *, pinned: bool) -> None:
        """Makes an adapter known while others are served. Raises AdapterError, ModelFailed."""

        def load(pool: ModelPool) -> None:
            _store(pool, served).register(name, Path(path), pinned=pinned)
            pool.members[served.name].adapters[name] = AdapterFiles(path, pinned)

        with self._service.use(served) as use:
            await use.wait()
            await self._service.on_pool(load)
        served.add_adapter(name, path)

    async def pin_adapter(self, served: Served, name: str, pinned: bool) -> None:
        """Keeps an adapter in memory, or allows it to leave. Raises AdapterError, ModelFailed."""
        if name not in served.adapters:
            raise UnknownAdapter(name)

        def pin(pool: ModelPool) -> None:
            _store(pool, served).pin(name, pinned)
            files = pool.members[served.name].adapters
            files[name] = files[name]._replace(pinned=pinned)

        with self._service.use(served) as use:
            await use.wait()
            await self._service.on_pool(pin)

    async def unload_adapter(self, served: Served, name: str) -> None:
        """Takes no more requests for an adapter, and forgets it once those it has have ended.

        Raises UnknownAdapter.
        """
        if served.adapters.pop(name, None) is None:
            raise UnknownAdapter(name)
        await self._service.gone(lambda: not self._in_use(served, name))

        def unload(pool: ModelPool) -> None:
            member = pool.members[served.name]
            member.adapters.pop(name, None)
            if member.live is not None:
                member.live.engine.adapters.unregister(name)
                member.live.scheduler.stats.forget(name)
            else:
                served.metrics.forget(name)

        await self._service.on_pool(unload)

    def _in_use(self, served: Served, name: str) -> bool:
        return any(
            (request.model, request.variant.adapter) == (served.name, name)
            for request in self._service.requests()
        )


def _store(pool: ModelPool, served: Served) -> AdapterStore:
    live = pool.members[served.name].live
    assert live is not None, "the model is held"
    return live.engine.adapters
