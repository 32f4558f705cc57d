"""What went wrong as an HTTP response in the client's shape; nothing of the inside shows in it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

logger = logging.getLogger("commons.server")

REQUEST_ID = "commons.request_id"  # in a scope: the name of the request
ERROR = "commons.error"  # in a scope: what the client was told, for the log
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
# Where the server is at fault, not what it has to do; such a client does not wait for less of it.
FAULTS = ("engine_dead", "engine_error")
INTERNAL_MESSAGE = "The server failed to answer; its log says why."
TOO_LONG = "prompt is too long"
INDEX = re.compile(r"\[(\d+)\]")  # in a param
OVERLOADED = 529  # Anthropic's status for a server that has too much to do


class ApiError(Exception):
    """A request that gets ``status`` and an error body; ``message`` is shown to the client.

    ``param`` names the field at fault, ``retry_after`` (seconds) becomes a header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The error for input that cannot be served as it is."""
    return ApiError(400, message, param=param, code=code)


def internal_error() -> ApiError:
    """The error that tells a client nothing but that the fault is the server's."""
    return ApiError(500, INTERNAL_MESSAGE, "server_error", "internal_error")


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON object of an error, as a body or as the last event of a stream."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def on_anthropic(error: ApiError) -> ApiError:
    """``error`` as Anthropic's routes tell it: there, a full queue has a status of its own.

    A tenant's own limits are 429 with ``rate_limit_error`` everywhere. Clients that shorten a
    conversation know that they have to by how the message begins.
    """
    if error.code == "context_length_exceeded" and not error.message.startswith(TOO_LONG):
        return bad_request(f"{TOO_LONG}: {error.message}", error.param, error.code)
    if error.code != "queue_full":
        return error
    return ApiError(
        OVERLOADED, error.message, "overloaded_error", error.code, retry_after=error.retry_after
    )


def anthropic_error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """The same in the Anthropic shape, whose clients look for the field in the message."""
    kind = None if error.code in FAULTS else ANTHROPIC_TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    told = {"type": kind, "message": error.message}
    if error.param is not None:
        told["param"] = INDEX.sub(r".\1", error.param)
        if not error.message.startswith(TOO_LONG):
            told["message"] = f"{told['param']}: {error.message}"
    return {"type": "error", "error": told, "request_id": request_id}


def is_anthropic(scope: Scope) -> bool:
    """Whether a request speaks the Anthropic dialect: by its route, or where both share one."""
    path: str = scope["path"]
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return any(name == b"anthropic-version" for name, _ in scope["headers"])
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_answer(
    scope: Scope, error: ApiError, headers: Mapping[str, str] | None = None
) -> Response:
    """The response for ``error`` in the shape of the dialect that was spoken."""
    scope[ERROR] = error
    if is_anthropic(scope):
        error = on_anthropic(error)
        return _response(error, anthropic_error_body(error, scope.get(REQUEST_ID, "")), headers)
    return error_response(error, headers)


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """The response for ``error`` in the OpenAI shape."""
    return _response(error, error_body(error), headers)


def _response(error: ApiError, body: dict[str, Any], headers: Mapping[str, str] | None) -> Response:
    """A response with ``Retry-After`` where waiting helps."""
    more = dict(headers or {})
    if error.retry_after is not None:
        more["retry-after"] = str(math.ceil(error.retry_after))
    return Response(_encode(body), error.status, more, media_type="application/json")


def _encode(body: dict[str, Any]) -> bytes:
    # A message may quote what a client sent; a lone surrogate has no UTF-8.
    message = body["error"]["message"]
    body["error"]["message"] = message.encode("utf-8", "replace").decode("utf-8")
    return msgspec.json.encode(body)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_answer(request.scope, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == HTTPStatus.NOT_FOUND:
        answer = ApiError(404, f"There is no route {path}.", code="not_found")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        answer = ApiError(405, f"{path} has no {request.method}.", code="method_not_allowed")
    else:
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        answer = ApiError(error.status_code, error.detail, kind)
    return error_answer(request.scope, answer, error.headers)


async def _on_exception(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return error_answer(request.scope, internal_error())


Handler = Callable[[Request, Exception], Awaitable[Response]]

exception_handlers: dict[int | type[Exception], Handler] = {
    ApiError: _on_api_error,
    HTTPException: _on_http_exception,
    Exception: _on_exception,
}
