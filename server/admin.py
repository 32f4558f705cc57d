"""``/admin/adapters``: adapters come and go while everybody else is served. Loopback only."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engine.adapter_files import AdapterError
from scheduler.service import Service
from scheduler.streams import EngineDead, UnknownAdapter

from .body import read_json
from .dialect import encode
from .errors import ApiError, bad_request

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class NewAdapter(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be loaded; ``path`` (by default the name) lies in the adapter folder."""

    name: str
    path: str | None = None
    pinned: bool = False


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be changed of a loaded one."""

    pinned: bool


def check_name(name: str) -> str:
    """``name``, if it can be a part of a model id. Raises ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is no name for an adapter: up to 64 letters, digits, '.', '_' and '-'"
        )
    return name


class AdapterAdmin:
    """The routes. ``folder`` is where adapters may be loaded from; None: nowhere."""

    def __init__(self, service: Service, folder: Path | None) -> None:
        self._service = service
        self._folder = folder

    async def all(self, request: Request) -> Response:
        """``GET /admin/adapters``."""
        self._allow(request)
        return await self._listed()

    async def load(self, request: Request) -> Response:
        """``POST /admin/adapters``: 409 for a name that is taken."""
        self._allow(request)
        new = await read_json(request, NewAdapter, {})
        try:
            check_name(new.name)
        except ValueError as error:
            raise bad_request(f"{error}.", "name") from error
        if new.name in self._service.adapters or new.name == self._service.config.served_model_name:
            raise ApiError(409, f"There is a model {new.name!r} already.", param="name")
        path = self._inside(new.path or new.name)
        try:
            await self._service.load_adapter(new.name, str(path), pinned=new.pinned)
        except AdapterError as error:
            raise bad_request(f"{error}.", "path") from error
        except EngineDead as error:
            raise _dead() from error
        return await self._listed(201)

    async def change(self, request: Request) -> Response:
        """``PATCH /admin/adapters/NAME``: pins it, or no longer."""
        self._allow(request)
        change = await read_json(request, Change, {})
        name = request.path_params["name"]
        try:
            await self._service.pin_adapter(name, change.pinned)
        except UnknownAdapter as error:
            raise _unknown(name) from error
        except AdapterError as error:
            raise ApiError(409, f"{error}.", param="pinned") from error
        except EngineDead as error:
            raise _dead() from error
        return await self._listed()

    async def unload(self, request: Request) -> Response:
        """``DELETE /admin/adapters/NAME``: answered when its last request has ended."""
        self._allow(request)
        name = request.path_params["name"]
        try:
            await self._service.unload_adapter(name)
        except UnknownAdapter as error:
            raise _unknown(name) from error
        except EngineDead as error:
            raise _dead() from error
        return await self._listed()

    async def _listed(self, status: int = 200) -> Response:
        try:
            states = await self._service.adapter_states()
        except EngineDead as error:
            raise _dead() from error
        body: dict[str, Any] = {"adapters": [s._asdict() for s in states]}
        return Response(encode(body), status, media_type="application/json")

    def _allow(self, request: Request) -> None:
        client = request.scope.get("client")
        try:
            local = client is not None and ipaddress.ip_address(client[0]).is_loopback
        except ValueError:
            local = False
        if not local:
            message = "Administration is possible from this machine only."
            raise ApiError(403, message, "permission_error", "forbidden")

    def _inside(self, path: str) -> Path:
        if self._folder is None:
            raise bad_request("The server has no adapter folder: start it with --adapter-dir.")
        folder = self._folder.resolve()
        try:
            wanted = (folder / path).resolve()
        except (OSError, ValueError) as error:
            raise bad_request("That is no path.", "path") from error
        if not wanted.is_relative_to(folder) or wanted == folder:
            raise bad_request("The path must lie inside the adapter folder.", "path")
        return wanted


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"There is no adapter {name[:200]!r}.", code="model_not_found")


def _dead() -> ApiError:
    return ApiError(503, "The engine does not run.", "server_error", "engine_dead")
