"""A request's use of a model: what keeps it loaded while the request is made. On the event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from .door import Hold
from .live import LoadedModel
from .served import Served


class Loader(Protocol):
    """Who loads models for those that wait."""

    def want(self, served: Served, hold: Hold) -> asyncio.Future[None]:
        """Has a model loaded. Raises EngineDead; the future may raise ModelFailed, EngineDead."""
        ...

    def leave(self, served: Served, hold: Hold) -> None:
        """Lets go of a model, after everything that was handed over before."""
        ...


class Use:
    """A context; within it, and once ``wait`` has returned, the model is loaded and stays."""

    def __init__(self, loader: Loader, served: Served) -> None:
        self._loader = loader
        self._served = served
        self._hold = Hold()
        self.ready = False

    def __enter__(self) -> Use:
        self.ready = self._served.door.enter(self._hold)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loader.leave(self._served, self._hold)

    async def wait(self) -> LoadedModel:
        """The model, as soon as it is loaded. Raises ModelFailed, EngineDead."""
        if not self.ready:
            await self._loader.want(self._served, self._hold)
            self.ready = True
        assert self._served.facts is not None
        return self._served.facts
