"""``/admin/adapters``: adapters come and go while everybody else is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engine.adapter_files import AdapterError
from scheduler.administration import Administration
from scheduler.served import Served
from scheduler.service import Service
from scheduler.streams import EngineDead, ModelFailed, UnknownAdapter, UnknownModel

from .adapter_name import check_name
from .body import read_json
from .dialect import encode
from .errors import ApiError, bad_request


class NewAdapter(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be loaded; ``path`` (by default the name) lies in the adapter folder.

    ``model`` is the base that it is for, by default the main one.
    """

    name: str
    model: str | None = None
    path: str | None = None
    pinned: bool = False


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be changed of a loaded one."""

    pinned: bool


def unavailable(error: ModelFailed | EngineDead) -> ApiError:
    """The error where a model, or the engine, is not there to be administered."""
    if isinstance(error, EngineDead):
        return ApiError(503, "The engine does not run.", "server_error", "engine_dead")
    message = f"The model cannot be loaded: {error}."
    return ApiError(503, message, "server_error", "model_failed", None, error.retry_after)


class AdapterAdmin:
    """The routes. ``folder`` is where adapters may be loaded from; None: nowhere."""

    def __init__(self, service: Service, folder: Path | None) -> None:
        self._service = service
        self._administration = Administration(service)
        self._folder = folder

    async def all(self, request: Request) -> Response:
        """``GET /admin/adapters``: those of all loaded models."""
        return await self._listed()

    async def load(self, request: Request) -> Response:
        """``POST /admin/adapters``: 409 for a name that is taken."""
        new = await read_json(request, NewAdapter, {})
        try:
            check_name(new.name)
        except ValueError as error:
            raise bad_request(f"{error}.", "name") from error
        served = self._base(new.model)
        names = {other.name for other in self._service.models}
        if new.name in served.adapters or new.name in names:
            raise ApiError(409, f"There is a model {new.name!r} already.", param="name")
        path = str(self._inside(new.path or new.name))
        try:
            await self._administration.load_adapter(served, new.name, path, pinned=new.pinned)
        except AdapterError as error:
            raise bad_request(f"{error}.", "path") from error
        except (ModelFailed, EngineDead) as error:
            raise unavailable(error) from error
        return await self._listed(201)

    async def change(self, request: Request) -> Response:
        """``PATCH /admin/adapters/NAME``: pins it, or no longer."""
        change = await read_json(request, Change, {})
        name = request.path_params["name"]
        served, adapter = self._named(name)
        try:
            await self._administration.pin_adapter(served, adapter, change.pinned)
        except UnknownAdapter as error:
            raise _unknown(name) from error
        except AdapterError as error:
            raise ApiError(409, f"{error}.", param="pinned") from error
        except (ModelFailed, EngineDead) as error:
            raise unavailable(error) from error
        return await self._listed()

    async def unload(self, request: Request) -> Response:
        """``DELETE /admin/adapters/NAME``: answered when its last request has ended."""
        name = request.path_params["name"]
        served, adapter = self._named(name)
        try:
            await self._administration.unload_adapter(served, adapter)
        except UnknownAdapter as error:
            raise _unknown(name) from error
        except EngineDead as error:
            raise unavailable(error) from error
        return await self._listed()

    async def _listed(self, status: int = 200) -> Response:
        listed: list[dict[str, Any]] = []
        try:
            for served in self._service.models:
                states = await self._administration.adapters(served)
                listed += [{"model": served.name, **state._asdict()} for state in states]
        except EngineDead as error:
            raise unavailable(error) from error
        return Response(encode({"adapters": listed}), status, media_type="application/json")

    def _base(self, name: str | None) -> Served:
        if name is None:
            return self._service.models.main
        try:
            return self._service.models[name]
        except UnknownModel as error:
            message = f"There is no model {name[:200]!r}."
            raise ApiError(404, message, code="model_not_found", param="model") from error

    def _named(self, name: str) -> tuple[Served, str]:
        """The base and the adapter that ``ADAPTER`` or ``BASE:ADAPTER`` means."""
        try:
            served, adapter = self._service.models.resolve(name)
        except (UnknownModel, UnknownAdapter) as error:
            raise _unknown(name) from error
        if adapter is None:
            raise _unknown(name)
        return served, adapter

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
