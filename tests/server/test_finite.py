"""Schemas whose values can have no end are told from those that merely refer to themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest

from server.errors import ApiError
from server.finite import is_finite
from server.structured import MOST_NODES, json_rule

ROOT = {"$ref": "#"}


def node(value: Any, **more: Any) -> dict[str, Any]:
    """An object that must have ``next``."""
    return {"type": "object", "properties": {"next": value}, "required": ["next"]} | more


def defined(**parts: Any) -> dict[str, Any]:
    """A schema that means the first of its definitions."""
    return {"$ref": f"#/$defs/{next(iter(parts))}", "$defs": parts}


FINITE: dict[str, dict[str, Any]] = {
    "anything": {},
    "a list": node({"anyOf": [ROOT, {"type": "null"}]}),
    "null at the second look": node({"oneOf": [ROOT, node({"type": ["object", "null"]})]}),
    "optional": {"type": "object", "properties": {"next": ROOT}},
    "a tree": node({"type": "array", "items": ROOT}),
    "a tuple that may be short": node({"type": "array", "prefixItems": [ROOT]}),
    "of any type": {"properties": {"next": ROOT}, "required": ["next"]},
    "a choice": node(ROOT, enum=[{"next": 1}]),
    "two that end": defined(a=node({"$ref": "#/$defs/b"}), b={"anyOf": [ROOT, {"const": 1}]}),
    "no value at all": node(False),
    "escaped": {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "string"}}},
    "unused": {"type": "string", "$defs": {"a": node({"$ref": "#/$defs/a"})}},
    "nowhere": {"$ref": "#/$defs/none"},
    "more than the required": {"type": "object", "minProperties": 1, "properties": {"a": {}}},
}
ENDLESS: dict[str, dict[str, Any]] = {
    "itself": ROOT,
    "object": node(ROOT),
    "by way of another": node(node(ROOT)),
    "optional, but then endless": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "$defs": {"a": node({"$ref": "#/$defs/a"})},
    },
    "array": {"type": "array", "items": ROOT, "minItems": 1},
    "tuple": {"type": "array", "prefixItems": [{}, ROOT], "minItems": 2},
    "array or object": node(ROOT, type=["array", "object"], items=ROOT, minItems=1),
    "two by turns": defined(a=node({"$ref": "#/$defs/b"}), b=node({"$ref": "#/$defs/a"})),
    "every branch": node({"anyOf": [ROOT, node(ROOT)]}),
    "all of": defined(a={"allOf": [{"type": "object"}, node({"$ref": "#/$defs/a"})]}),
    "any name": {"type": "object", "additionalProperties": ROOT, "minProperties": 1},
    "another name": {"type": "object", "additionalProperties": ROOT, "required": ["x"]},
    "names by a pattern": {
        "type": "object",
        "patternProperties": {"^x": ROOT},
        "additionalProperties": ROOT,
        "required": ["x"],
    },
}


@pytest.mark.parametrize("name", FINITE)
def test_finite(name: str) -> None:
    assert is_finite(FINITE[name])


@pytest.mark.parametrize("name", ENDLESS)
def test_endless(name: str) -> None:
    assert not is_finite(ENDLESS[name])
    for lenient in (False, True):
        with pytest.raises(ApiError) as refused:
            json_rule("tools[0]", ENDLESS[name], lenient=lenient)
        assert (refused.value.status, refused.value.param) == (400, "tools[0]")


def test_a_long_chain_takes_no_long_time() -> None:
    count = MOST_NODES // 4
    chain = {str(i): node({"$ref": f"#/$defs/{i + 1}"}) for i in range(count)}
    chain = dict(sorted(chain.items(), key=lambda pair: int(pair[0]) * 7919 % count))
    for last, finite in (({"type": "null"}, True), ({"$ref": "#/$defs/0"}, False)):
        schema = {"$ref": "#/$defs/0", "$defs": chain | {str(count): last}}
        began = time.process_time()
        assert is_finite(schema) is finite
        assert time.process_time() - began < 1
