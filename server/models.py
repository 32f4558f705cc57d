"""``/v1/models``: what is served."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.draft_model import Drafts
from scheduler.info import AdapterInfo
from scheduler.served import Served
from scheduler.service import Service
from scheduler.streams import UnknownAdapter, UnknownModel
from scheduler.tenant import Tenant

from .auth import tenant_of
from .caller import may_use
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


def _target_dict(served: Served, adapter: str | None) -> dict[str, Any]:
    return model_dict(served) if adapter is None else adapter_dict(served, served.adapters[adapter])


def alias_dict(name: str, target: dict[str, Any]) -> dict[str, Any]:
    """Another name for a model, which is its ``parent``."""
    return target | {"id": name, "parent": target["id"]}


class Models:
    """The list and its entries, as far as they are there for whoever asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self, request: Request) -> Response:
        """``GET /v1/models``; empty until the server is ready."""
        return _json({"object": "list", "data": self._entries(tenant_of(request.scope))})

    async def one(self, request: Request) -> Response:
        """``GET /v1/models/ID``. Raises ApiError 404."""
        name, tenant = request.path_params["model"], tenant_of(request.scope)
        try:
            served, adapter = self._service.models.resolve(name, may=partial(may_use, tenant))
        except (UnknownModel, UnknownAdapter) as error:
            raise unknown_model(self._service, tenant, name, None) from error
        if not self._service.health().loaded:
            raise unknown_model(self._service, tenant, name, None)
        found = _target_dict(served, adapter)
        own = (found["id"], adapter)
        return _json(found if name in own else alias_dict(name, found))

    def _entries(self, tenant: Tenant) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        if self._service.health().loaded:
            for served in self._service.models:
                if may_use(tenant, served, None):
                    entries.append(model_dict(served))
                    entries += [
                        adapter_dict(served, adapter)
                        for name, adapter in served.adapters.items()
                        if may_use(tenant, served, name)
                    ]
            entries += self._aliases(tenant)
        return entries

    def _aliases(self, tenant: Tenant) -> list[dict[str, Any]]:
        """Those that are names; a pattern is no model's name."""
        models, entries = self._service.models, []
        for name, target in models.aliases:
            try:
                served, adapter = models.resolve(target, may=partial(may_use, tenant))
            except (UnknownModel, UnknownAdapter):
                continue
            entries.append(alias_dict(name, _target_dict(served, adapter)))
        return entries


def _json(body: dict[str, Any]) -> Response:
    return Response(encode(body), media_type="application/json")
