"""``/v1/models``: what is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from scheduler.info import AdapterInfo, ModelInfo
from scheduler.service import Service
from scheduler.streams import UnknownAdapter

from .dialect import encode, unknown_model


def model_dict(info: ModelInfo) -> dict[str, Any]:
    """A base model in the OpenAI shape, with what is worth knowing beside it."""
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "mlx-commons",
        "root": info.root,
        "parent": None,
        "max_model_len": info.max_model_len,
        "attention": info.attention,
        "drafts": {"models": list(info.drafts.names), "off": info.drafts.off},
    }


def adapter_dict(info: ModelInfo, adapter: AdapterInfo) -> dict[str, Any]:
    """An adapter as the model that it makes of its base."""
    own = {"id": f"{info.name}:{adapter.name}", "created": adapter.created, "root": adapter.path}
    return model_dict(info) | own | {"parent": info.name}


class Models:
    """The list and its entries."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self, request: Request) -> Response:
        """``GET /v1/models``; empty while nothing is loaded."""
        return _json({"object": "list", "data": self._entries()})

    async def one(self, request: Request) -> Response:
        """``GET /v1/models/ID``. Raises ApiError 404."""
        name = request.path_params["model"]
        try:
            adapter = self._service.resolve(name)
        except UnknownAdapter as error:
            raise unknown_model(self._service, name, None) from error
        if not self._service.health().loaded:
            raise unknown_model(self._service, name, None)
        info = self._service.info
        if adapter is None:
            return _json(model_dict(info))
        return _json(adapter_dict(info, self._service.adapters[adapter]))

    def _entries(self) -> list[dict[str, Any]]:
        if not self._service.health().loaded:
            return []
        info, adapters = self._service.info, self._service.adapters.values()
        return [model_dict(info), *(adapter_dict(info, a) for a in adapters)]


def _json(body: dict[str, Any]) -> Response:
    return Response(encode(body), media_type="application/json")
