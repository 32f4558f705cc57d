"""``/openapi.json``: the server's routes, described by the types that they are checked with."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .dialect import encode
from .openapi_operations import BODY_STATUSES, EVENTS, JSON, OPERATIONS, Operation

REF = "#/components/schemas/{name}"
STATUSES = {
    200: "Done.",
    201: "Made.",
    400: "The request cannot be served as it is; `param` names the field at fault.",
    401: "The API key is missing or not known.",
    403: "The API key does not open this.",
    404: "There is no such thing, at least not for this key.",
    409: "This would contradict what is there.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    429: "A limit of the tenant is reached; `Retry-After` tells for how long.",
    503: "Not now: the server is loading, full, draining, or its engine has failed.",
    529: "The server is full.",
}

# One event of a stream; what its data hold is as the clients' own types have it.
SSE = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}


class Described(NamedTuple):
    """Types as schemas: references for use in place, and what these refer to."""

    schemas: dict[Any, dict[str, Any]]
    components: dict[str, Any]

    def of(self, kind: Any) -> dict[str, Any]:
        """A reference to a type, or to one of several."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.schemas[one] for one in kind]}
        return self.schemas[kind]


async def openapi(request: Request) -> Response:
    """The route."""
    return Response(_encoded(), media_type="application/json")


@functools.cache
def _encoded() -> bytes:
    return encode(document(OPERATIONS))


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of some operations."""
    operations = list(operations)
    described = _described(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        shown = _operation(operation, described)
        paths.setdefault(operation.path, {})[operation.method.lower()] = shown
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlx-commons", "version": _version()},
        "paths": paths,
        "components": {
            "schemas": described.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        # None is needed as long as none is configured.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _described(operations: Iterable[Operation]) -> Described:
    kinds: dict[Any, None] = {}
    for operation in operations:
        if operation.body is not None:
            kinds[operation.body] = None
        for kind in operation.answers().values():
            kinds |= dict.fromkeys(kind if isinstance(kind, tuple) else (kind,))
    schemas, components = msgspec.json.schema_components(tuple(kinds), ref_template=REF)
    return Described(dict(zip(kinds, schemas, strict=True)), dict(components))


def _operation(operation: Operation, described: Described) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            str(status): _answer(operation, status, kind, described)
            for status, kind in operation.answers().items()
        },
    }
    if operation.parameters:
        shown["parameters"] = [p.shown() for p in operation.parameters]
    if operation.body is not None:
        content = {JSON: {"schema": described.of(operation.body)}}
        shown["requestBody"] = {"required": True, "content": content}
    return shown


def _answer(operation: Operation, status: int, kind: Any, described: Described) -> dict[str, Any]:
    content: dict[str, Any] = {}
    good = status < BODY_STATUSES
    if not good or JSON in operation.media:
        content[JSON] = {"schema": described.of(kind)}
    for media in operation.media:
        if good and media != JSON:
            content[media] = {"schema": SSE if media == EVENTS else {"type": "string"}}
    return {"description": STATUSES[status], "content": content}


def _version() -> str:
    try:
        return version("mlx-commons")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
