"""``/v1/models``: what is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.draft_model import Drafts
from scheduler.info import AdapterInfo
from scheduler.served import Served
from scheduler.service import Service
from scheduler.streams import UnknownAdapter, UnknownModel

from .dialect import encode, unknown_model


def model_dict(served: Served) -> dict[str, Any]:
    """A base model in the OpenAI shape, with what is worth knowing beside it.

    What only a loaded model knows is null until then.
    """
    info = None if served.facts is None else served.facts.info
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "mlx-commons",
        "root": served.config.model,
        "parent": None,
        "max_model_len": None if info is None else info.max_model_len,
        "attention": None if info is None else info.attention,
        "drafts": None if info is None else _drafts(info.drafts),
        "loaded": info is not None,
    }


def _drafts(drafts: Drafts) -> dict[str, Any]:
    return {"models": list(drafts.names), "off": drafts.off}


def adapter_dict(served: Served, adapter: AdapterInfo) -> dict[str, Any]:
    """An adapter as the model that it makes of its base."""
    own = {"id": f"{served.name}:{adapter.name}", "created": adapter.created, "root": adapter.path}
    return model_dict(served) | own | {"parent": served.name}


class Models:
    """The list and its entries."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self, request: Request) -> Response:
        """``GET /v1/models``; empty until the server is ready."""
        return _json({"object": "list", "data": self._entries()})

    async def one(self, request: Request) -> Response:
        """``GET /v1/models/ID``. Raises ApiError 404."""
        name = request.path_params["model"]
        try:
            served, adapter = self._service.models.resolve(name)
        except (UnknownModel, UnknownAdapter) as error:
            raise unknown_model(self._service, name, None) from error
        if not self._service.health().loaded:
            raise unknown_model(self._service, name, None)
        if adapter is None:
            return _json(model_dict(served))
        return _json(adapter_dict(served, served.adapters[adapter]))

    def _entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        if self._service.health().loaded:
            for served in self._service.models:
                entries.append(model_dict(served))
                entries += [adapter_dict(served, a) for a in served.adapters.values()]
        return entries


def _json(body: dict[str, Any]) -> Response:
    return Response(encode(body), media_type="application/json")
