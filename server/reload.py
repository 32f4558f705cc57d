"""Takes a changed settings file and changed keys while the server runs, or refuses them whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

import anyio
from starlette.requests import Request
from starlette.responses import Response

from scheduler.aliases import Aliases
from scheduler.served import Catalogue

from .access import Access
from .config import ServerConfig, check_grants
from .dialect import encode
from .errors import ApiError
from .settings_file import ConfigError

logger = logging.getLogger("commons.server")

LIVE = {"service", "grants", "tenants", "reread", "aliases"}  # looked into, or may change
DERIVED = {"draft_name"}  # follows from another option


class Reloaded(NamedTuple):
    """What holds now: names of tenants, the number of keys, and what waits for a restart."""

    tenants: list[str]
    keys: int
    restart: list[str]


class Reloader:
    """Brings ``access`` and aliases up to date with the configuration as a start would find it.

    That is what ``reread`` finds, on a worker thread; it raises ConfigError.
    """

    def __init__(
        self,
        config: ServerConfig,
        access: Access,
        reread: Callable[[], ServerConfig],
        models: Catalogue,
    ) -> None:
        self._config = config
        self._access = access
        self._models = models
        self._reread = reread
        self._lock = asyncio.Lock()  # the last to ask has the last word

    async def reload(self) -> Reloaded:
        """Lets what is in the files hold from now on. Raises ConfigError."""
        async with self._lock:
            fresh = await anyio.to_thread.run_sync(self._fresh)
            self._access.change(fresh.grants)
            self._models.aliases = Aliases(fresh.service.aliases)
        warn_of_keys(self._access)
        grants = fresh.grants
        return Reloaded(
            tenants=[tenant.name for tenant in grants.everybody],
            keys=len(grants.keys) + (grants.api_key is not None),
            restart=_changed(self._config, fresh),
        )

    def _fresh(self) -> ServerConfig:
        fresh = self._reread()
        # A server that is closed stays so, and its last key may be revoked.
        if not self._access.closed:
            check_grants(fresh)
        return fresh

    async def on_signal(self) -> None:
        """The same for a signal, which nobody waits for: the log tells how it went."""
        try:
            done = await self.reload()
        except ConfigError as error:
            logger.error("reload refused, the old settings stay: %s", error)
            return
        restart = ", ".join(done.restart) or "nothing"
        logger.info(
            "reloaded: %d tenants, %d keys; waiting for a restart: %s",
            len(done.tenants),
            done.keys,
            restart,
        )


class ReloadAdmin:
    """The route."""

    def __init__(self, reloader: Reloader | None) -> None:
        self._reloader = reloader

    async def reload(self, request: Request) -> Response:
        """``POST /admin/reload``: 400 with file, line and reason where the old settings stay."""
        if self._reloader is None:
            message = "The server was started without --config: there is nothing to reload."
            raise ApiError(400, message, code="no_config")
        try:
            done = await self._reloader.reload()
        except ConfigError as error:
            message = f"{error}. The old settings stay."
            raise ApiError(400, message, code="invalid_config") from error
        return Response(encode(done._asdict()), media_type="application/json")


def warn_of_keys(access: Access) -> None:
    """Says in the log what an operator may not have meant."""
    for name in access.grants.orphans:
        logger.warning("there are keys for %r, which is no tenant: they open nothing", name)
    if access.closed and not any(who.tenant for _, who in access.grants.doors()):
        logger.warning("no tenant has a key: all their requests are answered with 401")


def _changed(old: ServerConfig, new: ServerConfig) -> list[str]:
    """The options that differ and that only a start reads, as they are called in the file."""
    names = []
    for before, after in ((old.service, new.service), (old, new)):
        for field in fields(before):
            if field.name in LIVE | DERIVED:
                continue
            if getattr(before, field.name) != getattr(after, field.name):
                names.append(field.name.replace("_", "-"))
    return names
