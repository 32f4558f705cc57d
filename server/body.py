"""Reads a JSON body and checks its types; what is wrong becomes a 4xx that names the field."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from .errors import ApiError, bad_request

MOST_BODY = 64 << 20  # bytes
JSON_TYPE = re.compile(r"application/([\w.+-]*\+)?json\s*(;.*)?", re.IGNORECASE)
AT_PATH = re.compile(r" - at `(\$[^`]*)`$")
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MISSING = re.compile(r"missing required field `(\w+)`")

Refused = dict[str, tuple[Any, ...]]
"""Fields that a route refuses by name, and the values of them that ask for nothing."""

T = TypeVar("T")


async def read_json(request: Request, kind: type[T], refused: Refused) -> T:
    """The body as a ``kind``. Raises ApiError: 400, 413 or 415."""
    content_type = request.headers.get("content-type", "")
    if not JSON_TYPE.fullmatch(content_type.strip()):
        raise ApiError(415, "The body must be JSON: send it with 'Content-Type: application/json'.")
    return decode(await _read(request), kind, refused)


def decode(body: bytes, kind: type[T], refused: Refused) -> T:
    """``body`` as a ``kind``. Raises ApiError 400.

    Fields that ``kind`` does not know are passed over, since clients send many that mean
    nothing here; those in ``refused`` would change the answer and are refused by name.
    """
    try:
        fields = msgspec.json.decode(body)
        if isinstance(fields, dict):
            _refuse(fields, refused)
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        raise bad_request(f"{AT_PATH.sub('', message)}.", _field(message)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.", _unsound(body)) from error
    except RecursionError as error:
        raise bad_request("The body is nested too deeply.") from error


def _unsound(body: bytes) -> str | None:
    """The field with a lone surrogate, which is why a body is no JSON with a meaning."""
    if not ESCAPED_SURROGATE.search(body):
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if LONE_SURROGATE.search(json.dumps([name, value], ensure_ascii=False)):
            return str(name)
    return None


def _field(message: str) -> str | None:
    """The field that msgspec complains of; one that is missing has no path of its own."""
    path, missing = AT_PATH.search(message), MISSING.search(message)
    names = [path[1].removeprefix("$") if path else "", missing[1] if missing else ""]
    return ".".join(filter(None, names)).removeprefix(".") or None


def _refuse(fields: dict[str, Any], refused: Refused) -> None:
    for name, harmless in refused.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            raise bad_request(f"{name} is not supported by this server.", name, "unsupported")


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MOST_BODY:
                raise ApiError(
                    413, f"The body is larger than {MOST_BODY >> 20} MiB.", code="body_too_large"
                )
            parts.append(part)
    except ClientDisconnect as error:
        raise ApiError(499, "The client went away.") from error
    request.state.body_bytes = size
    return b"".join(parts)
