"""Takes out of a request what differs from one to the next and means nothing to the model.

Prompts that differ in it would share no prefix. Each kind is counted, and all can be turned off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from scheduler.metrics import ModelMetrics

# What Claude Code puts before its system prompt. Only in this form, and only where a system
# block begins with it: a text about such headers is a text.
BILLING_HEADER = re.compile(
    r"x-anthropic-billing-header:[ \t]*[\w.-]+=[^;\n]*+"
    r"(?:;[ \t]*[\w.-]+=[^;\n]*+)*(?:;[ \t]*)?(?:\n|\Z)"
)
# A schema's keywords in the order that most are written in; others follow by name.
KEYWORDS = ("type", "title", "description", "enum", "properties", "required", "items")
RANKS = {keyword: rank for rank, keyword in enumerate(KEYWORDS)}
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
DEEPEST = 100  # schemas in one another; below that the order stays as it came

_encode = msgspec.json.Encoder().encode


class Stable(NamedTuple):
    """Normalises the prompts for one model; ``metrics`` are the model's."""

    enabled: bool
    metrics: ModelMetrics

    def system(self, blocks: Sequence[str]) -> list[str]:
        """The system prompt's blocks without a billing header; one of nothing else is left out."""
        if not self.enabled:
            return list(blocks)
        kept = [_without_header(block) for block in blocks]
        if kept == list(blocks):
            return kept
        self.metrics.normalised("billing_header")
        return [new for new, old in zip(kept, blocks, strict=True) if new or not old]

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Tools, as templates know them, with their schemas' keys in an order of their own."""
        given = list(tools)
        if not self.enabled:
            return given
        kept: list[Mapping[str, Any]] = [canonical_tool(tool) for tool in given]
        # Dictionaries are equal in any order; their text is not.
        if _encode(kept) != _encode(given):
            self.metrics.normalised("tool_schema")
        return kept


def _without_header(block: str) -> str:
    found = BILLING_HEADER.match(block)
    return block[found.end() :] if found else block


def canonical_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """``tool`` with the keys of its schema in an order that depends on nothing but the schema."""
    function = dict(tool["function"])
    if isinstance(function.get("parameters"), dict):
        function["parameters"] = _schema(function["parameters"], 0)
    return {**tool, "function": function}


def _schema(schema: dict[str, Any], depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        return schema
    made = {}
    for key in sorted(schema, key=_rank):
        value = schema[key]
        if key in NAMED and isinstance(value, dict):
            made[key] = _named(value, schema.get("required"), depth + 1)
        else:
            made[key] = _value(value, depth + 1)
    return made


def _rank(keyword: str) -> tuple[int, str]:
    return RANKS.get(keyword, len(RANKS)), keyword


def _named(schemas: dict[str, Any], required: Any, depth: int) -> dict[str, Any]:
    """Schemas by name: those that ``required`` lists in its order, which is meant, then the others.

    Models write arguments in the order of the properties.
    """
    first = [n for n in required if isinstance(n, str)] if isinstance(required, list) else []
    listed = [name for name in dict.fromkeys(first) if name in schemas]
    others = sorted(schemas.keys() - set(listed))
    return {name: _value(schemas[name], depth) for name in (*listed, *others)}


def _value(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        return _schema(value, depth)
    if isinstance(value, list) and depth <= DEEPEST:
        return [_value(item, depth + 1) for item in value]
    return value
