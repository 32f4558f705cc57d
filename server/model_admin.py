"""``/admin/models``: models come into memory and leave it at an operator's word."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from scheduler.administration import Administration
from scheduler.served import Served
from scheduler.service import Service
from scheduler.streams import EngineDead, ModelFailed, UnknownModel

from .admin import unavailable
from .body import read_json
from .dialect import encode
from .errors import ApiError


class WantedModel(msgspec.Struct, forbid_unknown_fields=True):
    """Which model of the configured ones is to be loaded."""

    name: str


class ModelAdmin:
    """The routes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._administration = Administration(service)

    async def all(self, request: Request) -> Response:
        """``GET /admin/models``."""
        return await self._listed()

    async def load(self, request: Request) -> Response:
        """``POST /admin/models``: answered when the model is loaded, 503 where it cannot be."""
        wanted = await read_json(request, WantedModel, {})
        served = self._known(wanted.name)
        try:
            await self._administration.load(served)
        except (ModelFailed, EngineDead) as error:
            raise unavailable(error) from error
        return await self._listed()

    async def unload(self, request: Request) -> Response:
        """``DELETE /admin/models/NAME``: answered when its last request has ended.

        409 for a model that stays loaded.
        """
        served = self._known(request.path_params["name"])
        if served.config.keep_loaded:
            raise ApiError(409, f"The model {served.name!r} stays loaded.", param="name")
        try:
            await self._administration.unload(served)
        except EngineDead as error:
            raise unavailable(error) from error
        return await self._listed()

    def _known(self, name: str) -> Served:
        try:
            return self._service.models[name]
        except UnknownModel as error:
            message = f"There is no model {name[:200]!r}."
            raise ApiError(404, message, code="model_not_found", param="name") from error

    async def _listed(self) -> Response:
        try:
            states = await self._administration.models()
        except EngineDead as error:
            raise unavailable(error) from error
        body = {"models": [state._asdict() for state in states]}
        return Response(encode(body), media_type="application/json")
