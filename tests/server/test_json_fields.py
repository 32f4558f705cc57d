"""Which field is at fault, and how long it takes to say so."""

from __future__ import annotations

import time

import pytest

from server.body import decode
from server.errors import ApiError
from server.fields import GenerationFields
from server.json_fields import MOST_SCANNED, deep_field, field_at


@pytest.mark.parametrize(
    ("body", "at", "field"),
    [
        (b'{"a": 1, "b": "x!"}', b"!", "b"),
        (b'{"a": {"b": ["!"]}, "c": 1}', b"!", "a"),
        (b'{"a": "\\"b\\": ", "c": "!"}', b"!", "c"),
        (b'{"a": 1, !', b"!", None),
        (b'["!"]', b"!", None),
        (b'{"not a name\\n": "!"}', b"!", None),
        (b"!", b"!", None),
    ],
)
def test_field_at(body: bytes, at: bytes, field: str | None) -> None:
    assert field_at(body, body.index(at)) == field


def test_deep_field() -> None:
    assert deep_field(b'{"a": [[]], "b": [[[[]]]], "c": 1}', 4) == "b"
    assert deep_field(b'{"a": [[]], "b": "[[[[[["}', 4) is None


def test_what_is_far_off_is_not_looked_for() -> None:
    body = b'{"a": "' + b"x" * MOST_SCANNED + b'!"}'
    assert field_at(body, body.index(b"!")) is None
    assert field_at(b'{"a": [' + b"[]," * 100_000 + b"!", 300_007) is None


BODIES = {
    "quotes": b'"\\"' * 300_000 + b"\\",
    "escaped quotes": b'{"a": "' + b'\\"' * 500_000,
    "backslashes": b'{"a": "' + b"\\" * 1_000_001 + b'"',
    "brackets": b'{"a": ' + b"[" * 1_000_000,
    "halves": b'{"a": "' + b"\\ud800" * 200_000 + b'"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_fault_is_found_in_time(body: bytes) -> None:
    began = time.thread_time()
    with pytest.raises(ApiError):
        decode(body, GenerationFields, {})
    field_at(body, MOST_SCANNED - 1)
    deep_field(body, 10**9)
    assert time.thread_time() - began < 1
