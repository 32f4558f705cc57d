"""Schemas that no server should choke on."""

from __future__ import annotations

from typing import Any

PLAIN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def as_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema} | more}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def recursive() -> dict[str, Any]:
    return {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}


def bomb(width: int, depth: int) -> dict[str, Any]:
    parts = [{"anyOf": [nested(2) for _ in range(width)]} for _ in range(depth)]
    return {"allOf": [{"properties": {f"p{i}": part}} for i, part in enumerate(parts)] * 8}


BAD_SCHEMAS: dict[str, Any] = {
    "no object": 7,
    "deep": nested(200),
    "wide": {"enum": [f"value {i}" for i in range(50_000)]},
    "endless": recursive(),
    "without end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "elsewhere": {"$ref": "https://example.com/schema.json"},
    "dangling": {"$ref": "#/$defs/none"},
    "unknown type": {"type": "float"},
    "not": {"not": {"type": "string"}},
    "multiple": {"type": "integer", "multipleOf": 1_234_567},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": n} for n in (997, 991)]},
    "huge pattern": {"type": "string", "pattern": "a" * 10_000},
    "no pattern": {"type": "string", "pattern": "(["},
    "hours": {
        "allOf": [
            {"type": "string", "pattern": f"a{{{i},{i + 50}}}.*b.{{{i}}}c"} for i in range(30)
        ]
    },
    "surrogate": {"type": "object", "properties": {"\ud800": {"type": "string"}}},
    "empty": {"type": "string", "minLength": 3, "maxLength": 2},
    "large": {"description": "x" * 300_000, "type": "object"},
}
COSTLY: dict[str, Any] = {
    "alternatives": bomb(20, 30),
    "repetitions": {"type": "string", "pattern": "^((a{1,900}){1,900}){1,900}b(c|d{1,900})*$"},
    "catastrophic": {"type": "string", "pattern": "^(a|a?)+(a+)+[ab]*a[ab]{20}$"},
    "items": {"type": "array", "items": PLAIN, "minItems": 100_000},
}
