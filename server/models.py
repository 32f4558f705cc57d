"""``/v1/models``: what is served."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.options import Drafts
from scheduler.info import AdapterInfo
from scheduler.served import Served
from scheduler.service import Service
from scheduler.streams import UnknownAdapter, UnknownModel
from scheduler.tenant import Tenant

from .auth import tenant_of
from .caller import may_use
from .dialect import encode, unknown_model
from .errors import bad_request, is_anthropic

MOST_LISTED = 1000  # on one page, where a client wants pages


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


def anthropic_dict(model: dict[str, Any]) -> dict[str, Any]:
    """A model, or an adapter, in Anthropic's shape."""
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": datetime.fromtimestamp(model["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": model["max_model_len"],
        "max_tokens": model["max_model_len"],
    }


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
        entries = self._entries(tenant_of(request.scope))
        if is_anthropic(request.scope):
            return _json(_page(request, [anthropic_dict(entry) for entry in entries]))
        return _json({"object": "list", "data": entries})

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
        entry = found if name in own else alias_dict(name, found)
        return _json(anthropic_dict(entry) if is_anthropic(request.scope) else entry)

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


def _page(request: Request, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of a list that Anthropic's clients ask for. Raises ApiError."""
    limit = request.query_params.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:5]) <= MOST_LISTED):
        raise bad_request(f"limit must be between 1 and {MOST_LISTED}.", "limit")
    first, last = 0, len(entries)
    ids = [entry["id"] for entry in entries]
    if (after := request.query_params.get("after_id")) is not None:
        first = _place(ids, after, "after_id") + 1
    before = request.query_params.get("before_id")
    if before is not None:
        last = _place(ids, before, "before_id")
        first = max(first, last - int(limit))
    page = entries[first : min(last, first + int(limit))]
    more = first > 0 if before is not None else first + len(page) < last
    return {
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _place(ids: list[str], wanted: str, param: str) -> int:
    if wanted not in ids:
        raise bad_request(f"{wanted[:200]!r} is not in the list.", param)
    return ids.index(wanted)


def _json(body: dict[str, Any]) -> Response:
    return Response(encode(body), media_type="application/json")
