"""``/v1/models``: what is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from scheduler.service import ModelInfo, Service

from .dialect import encode
from .errors import ApiError


def model_dict(info: ModelInfo) -> dict[str, Any]:
    """A model in the OpenAI shape, with what is worth knowing beside it."""
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "mlx-commons",
        "root": info.root,
        "parent": None,
        "max_model_len": info.max_model_len,
        "attention": info.attention,
    }


class Models:
    """The list and its entries."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self, request: Request) -> Response:
        """``GET /v1/models``; empty while nothing is loaded."""
        data = [model_dict(info) for info in self._infos()]
        return _json({"object": "list", "data": data})

    async def one(self, request: Request) -> Response:
        """``GET /v1/models/ID``. Raises ApiError 404."""
        name = request.path_params["model"]
        for info in self._infos():
            if info.name == name:
                return _json(model_dict(info))
        raise ApiError(
            404, f"The model {name[:200]!r} does not exist.", code="model_not_found", param="model"
        )

    def _infos(self) -> list[ModelInfo]:
        return [self._service.info] if self._service.health().loaded else []


def _json(body: dict[str, Any]) -> Response:
    return Response(encode(body), media_type="application/json")
