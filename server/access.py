"""Who may come in: tenants and keys, which may be exchanged for others while requests run."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.tenant import DEFAULT, Tenant

from .keys import Key
from .settings_file import ConfigError
from .tenants import ADMIN, METRICS, RESERVED

OnChange = Callable[[tuple[Tenant, ...]], None]


class Identity(NamedTuple):
    """What a key opens; ``tenant`` None: nothing that is done for a tenant."""

    tenant: Tenant | None
    admin: bool = False
    metrics: bool = False


@dataclass(frozen=True, slots=True)
class Grants:
    """What was configured: ``tenants``, hashes of their ``keys``, and that of the one ``api_key``.

    The one key is that of the tenant ``default``, and opens ``/admin`` and ``/metrics`` too.
    """

    tenants: tuple[Tenant, ...] = ()
    keys: tuple[Key, ...] = ()
    api_key: bytes | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and self.api_key in {key.digest for key in self.keys}:
            raise ConfigError("--api-key is a key of the keys file, too: there must be one of each")

    @property
    def closed(self) -> bool:
        """Whether nobody comes in without a key."""
        return bool(self.tenants or self.keys) or self.api_key is not None

    @property
    def everybody(self) -> tuple[Tenant, ...]:
        """All tenants for whom requests may come."""
        known = {tenant.name: tenant for tenant in self.tenants}
        if not known or self.api_key is not None:
            known.setdefault(DEFAULT.name, DEFAULT)
        return tuple(known.values())

    @property
    def orphans(self) -> tuple[str, ...]:
        """Whose keys open nothing, because there is no such tenant."""
        known = {*(tenant.name for tenant in self.everybody), *RESERVED}
        return tuple(sorted({key.name for key in self.keys} - known))

    @property
    def keyless(self) -> bool:
        """Whether a key is needed and there is none."""
        return self.closed and self.api_key is None and len(self.keys) == 0

    def doors(self) -> Iterable[tuple[bytes, Identity]]:
        """The hash of every key, with what it opens."""
        known = {tenant.name: tenant for tenant in self.everybody}
        for key in self.keys:
            admin = key.name == ADMIN
            metrics = admin or key.name == METRICS
            yield key.digest, Identity(known.get(key.name), admin, metrics)
        if self.api_key is not None:
            yield self.api_key, Identity(known[DEFAULT.name], admin=True, metrics=True)


class _State(NamedTuple):
    grants: Grants
    closed: bool
    doors: tuple[tuple[bytes, Identity], ...]


class Access:
    """The tenants and keys that hold at the moment; on the event loop."""

    def __init__(self, grants: Grants) -> None:
        self._state = _State(grants, grants.closed, tuple(grants.doors()))
        self._callbacks: list[OnChange] = []

    @property
    def grants(self) -> Grants:
        """What holds."""
        return self._state.grants

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """All for whom requests may come."""
        return self._state.grants.everybody

    @property
    def closed(self) -> bool:
        """Whether a key is needed; a server that once needed one does so to its end."""
        return self._state.closed

    def identify(self, digest: bytes) -> Identity | None:
        """What the key with this hash opens; None for one that is not known.

        Takes the same time for every key, known or not.
        """
        found = None
        for known, identity in self._state.doors:
            if hmac.compare_digest(known, digest):
                found = identity
        return found

    def on_change(self, callback: OnChange) -> None:
        """Has ``callback`` told all tenants whenever they have been exchanged."""
        self._callbacks.append(callback)

    def change(self, grants: Grants) -> None:
        """Lets ``grants`` hold from now on; requests that are running go on as they were."""
        closed = self.closed or grants.closed
        self._state = _State(grants, closed, tuple(grants.doors()))
        for callback in self._callbacks:
            callback(self.tenants)
