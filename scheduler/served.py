"""The configured models as the event loop sees them, and what the names in requests mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from engine.variant import Variant

from .aliases import Aliases
from .door import Door
from .info import AdapterInfo, ModelConfig
from .live import LoadedModel
from .metrics import ModelMetrics
from .streams import UnknownAdapter, UnknownModel


class Served:
    """One model: ``facts`` while it is loaded, and what is known of it without.

    ``created`` is in Unix seconds: when the server began to offer it. ``unloads`` counts how
    often it was unloaded.
    """

    def __init__(self, config: ModelConfig, metrics: ModelMetrics) -> None:
        self.config = config
        self.metrics = metrics
        self.door = Door()
        self.facts: LoadedModel | None = None
        self.unloads = 0
        self.created = int(time.time())
        self.adapters: dict[str, AdapterInfo] = {}
        self._begin_series()
        for name, path in config.adapters:
            self.add_adapter(name, path)

    @property
    def name(self) -> str:
        """The id of the base in requests."""
        return self.config.name

    def add_adapter(self, name: str, path: str) -> None:
        """Offers an adapter from now on; its series begin at 0."""
        self.adapters[name] = AdapterInfo(name, path, int(time.time()))
        self._begin_series(name)

    def _begin_series(self, adapter: str | None = None) -> None:
        for draft in (None, *self.config.drafts):
            self.metrics.of(Variant(adapter, draft))


May = Callable[[Served, str | None], bool]
"""Whether a model (None), or an adapter of it, may be used."""


class Target(NamedTuple):
    """What a request is for: a model, with one of its adapters or None."""

    served: Served
    adapter: str | None = None


class Catalogue:
    """All models of a server, the main one first; ``aliases`` may be exchanged for others."""

    def __init__(self, models: Iterable[Served], aliases: Iterable[tuple[str, str]] = ()) -> None:
        self._models = {served.name: served for served in models}
        self.aliases = Aliases(aliases)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models.values())

    def __getitem__(self, name: str) -> Served:
        """The model with just this name. Raises UnknownModel."""
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel(name) from None

    @property
    def main(self) -> Served:
        """The model that is always loaded."""
        return next(iter(self))

    def resolve(
        self, model: str, adapter: str | None = None, may: May = lambda served, adapter: True
    ) -> Target:
        """What a request's ``model`` and ``adapter`` mean.

        An adapter is also a model: ``BASE:ADAPTER``, or ``ADAPTER`` of the first model that has
        one of that name. What whoever asks may not use is passed over as if it were not there.
        A name that means nothing else may be an alias. Raises UnknownModel, UnknownAdapter.
        """
        try:
            return self._resolve(model, adapter, may)
        except UnknownModel:
            target = self.aliases.target(model)
            if target is None:
                raise
            return self._resolve(target, adapter, may)

    def _resolve(self, model: str, adapter: str | None, may: May) -> Target:
        base = self._models.get(model)
        if base is not None and may(base, None):
            if adapter is None or (adapter in base.adapters and may(base, adapter)):
                return Target(base, adapter)
            raise UnknownAdapter(adapter)
        for served in self:
            named = model.removeprefix(f"{served.name}:")
            if named in served.adapters and may(served, named):
                if adapter not in (None, named):
                    raise UnknownAdapter(adapter)
                return Target(served, named)
        raise UnknownModel(model)
