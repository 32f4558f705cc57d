"""Reads a JSON body and checks its types; what is wrong becomes a 4xx that names the field."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from .errors import ApiError, bad_request
from .json_fields import deep_field, field_at
from .request_log import log_body

MOST_BODY = 64 << 20  # bytes
JSON_TYPE = re.compile(r"application/([\w.+-]*\+)?json\s*(;.*)?", re.IGNORECASE)
TOO_DEEP = 200  # levels; deeper ones are not read
MOST_CONTAINERS = 100_000  # objects and lists; to read and check them keeps streams waiting
MOST_BRACKETS = 4 * MOST_CONTAINERS  # those in texts, too; to tell them apart takes time
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# Half of a pair in a string, which has no UTF-8. The escape before it may itself be escaped.
UNPAIRED = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:"
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
MOST_SEARCHED = 1 << 20  # bytes
AT_PATH = re.compile(r" - at `(\$[^`]*)`$")
MISSING = re.compile(r"missing required field `(\w+)`")

Refused = dict[str, tuple[Any, ...]]
"""Fields that a route refuses by name, and the values of them that ask for nothing."""

T = TypeVar("T")


async def read_json(request: Request, kind: type[T], refused: Refused) -> T:
    """The body as a ``kind``. Raises ApiError: 400, 413 or 415."""
    content_type = request.headers.get("content-type", "")
    if not JSON_TYPE.fullmatch(content_type.strip()):
        raise ApiError(415, "The body must be JSON: send it with 'Content-Type: application/json'.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "The body must not be compressed: send it without a Content-Encoding.")
    body = await _read(request)
    log_body(body)
    return decode(body, kind, refused)


def decode(body: bytes, kind: type[T], refused: Refused) -> T:
    """``body`` as a ``kind``. Raises ApiError 400.

    Fields that ``kind`` does not know are passed over, since clients send many that mean
    nothing here; those in ``refused`` would change the answer and are refused by name.
    """
    try:
        _check_size(body)
        fields = msgspec.json.decode(body)
        if isinstance(fields, dict):
            _refuse(fields, refused)
        return convert(fields, kind)
    except UnicodeDecodeError as error:
        raise bad_request("The body is not UTF-8.", _not_utf8(body)) from error
    except msgspec.DecodeError as error:
        message = f"The body is not valid JSON: {error}."
        raise bad_request(message, _unpaired(body)) from error
    except RecursionError as error:
        param = deep_field(body, TOO_DEEP)
        raise bad_request("The body is nested too deeply.", param) from error


def _check_size(body: bytes) -> None:
    """Raises ApiError 400 for more than ``MOST_CONTAINERS``.

    Brackets in texts are not counted, unless there are more than any context has room for.
    """
    brackets = _brackets(body)
    if brackets <= MOST_CONTAINERS:
        return
    if not body.lstrip().startswith(b"{"):
        raise bad_request("The body is not an object.")
    count = 0
    for name, value in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
        text = bytes(value)
        count += _brackets(text if brackets > MOST_BRACKETS else STRING.sub(b"", text))
        if count > MOST_CONTAINERS:
            message = f"The body holds more than {MOST_CONTAINERS:,} objects and lists."
            raise bad_request(message, name[:64])


def _brackets(text: bytes) -> int:
    return text.count(b"{") + text.count(b"[")


def convert(value: Any, kind: type[T], where: str = "") -> T:
    """``value``, a part of a body found at ``where``, as a ``kind``. Raises ApiError 400."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        field = ".".join(filter(None, [where, _field(message)])).replace(".[", "[")
        raise bad_request(f"{AT_PATH.sub('', message)}.", field or None) from error


def _field(message: str) -> str | None:
    """The field that msgspec complains of; one that is missing has no path of its own."""
    path, missing = AT_PATH.search(message), MISSING.search(message)
    names = [path[1].removeprefix("$") if path else "", missing[1] if missing else ""]
    return ".".join(filter(None, names)).removeprefix(".") or None


def _not_utf8(body: bytes) -> str | None:
    """The field with bytes that are no UTF-8; the parser tells their place in a string alone."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return field_at(body, error.start)
    return None


def _unpaired(body: bytes) -> str | None:
    """The field with half of a surrogate pair, if that is what is wrong with the body."""
    found = UNPAIRED.search(body, 0, MOST_SEARCHED)
    return None if found is None else field_at(body, found.start())


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
