"""How models write tool calls, as rules of a Lark grammar.

Each format is that of one of mlx-lm's parsers. Rules define ``call`` or ``calls``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.tokenizer import Tokenizer

from .errors import bad_request
from .structured import json_rule, quoted

Tool = tuple[int, Mapping[str, Any]]
"""A function, and where it is in the request's list."""

PLAIN_NAME = re.compile(r"[\w.:-]+")


def call_rules(tokenizer: Tokenizer, tools: Sequence[Tool], *, one: bool) -> str:
    """Rules that define ``calls``: one call of these tools, or any number. Raises ApiError."""
    write = _FORMATS.get(tokenizer.tool_format)
    assert write is not None and tokenizer.tool_call is not None
    begin, end = (_marker(tokenizer, text) for text in tokenizer.tool_call)
    return write(begin, end, tools, one)


def can_force(tokenizer: Tokenizer) -> bool:
    """Whether the form of the model's calls is known."""
    return tokenizer.tool_format in _FORMATS


def _marker(tokenizer: Tokenizer, text: str) -> str:
    token = tokenizer.added_token(text)
    return quoted(text) if token is None else f"<[{token}]>"


def _arguments(tool: Tool) -> str:
    index, function = tool
    schema = function.get("parameters")
    if not isinstance(schema, dict) or not schema:
        return '"{}"'
    schema = {"type": "object"} | schema
    return json_rule(f"tools[{index}]", schema, lenient=function.get("strict") is not True)


def _json(begin: str, end: str, tools: Sequence[Tool], one: bool) -> str:
    """``<tool_call>`` with name and arguments as one JSON object, as of Qwen and Hermes."""
    rules = [f"calls: call{'' if one else _more('call', sep=True)}"]
    rules.append(f'call: {begin} "\\n" ({_names(len(tools))}) "\\n" {end}')
    for i, tool in enumerate(tools):
        head = quoted(f'{{"name": {quoted(tool[1]["name"])}, "arguments": ')
        rules.append(f'call{i}: {head} {_arguments(tool)} "}}"')
    return "\n".join(rules) + "\n"


def _qwen3_coder(begin: str, end: str, tools: Sequence[Tool], one: bool) -> str:
    """Functions and parameters in tags; texts as they are, all else as JSON."""
    rules = [f"calls: call{'' if one else _more('call', sep=True)}"]
    rules.append(f'call: {begin} "\\n" ({_names(len(tools))}) "\\n" {end}')
    rules.append(r'text[suffix="\n</parameter>\n"]: /(?s:.*)/')
    for i, tool in enumerate(tools):
        schema = tool[1].get("parameters") or {}
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        parts = []
        for name, value in properties.items():
            part = _parameter(tool, schema, _tag(name), value)
            parts.append(part if name in required else f"({part})?")
        head, tail = quoted(f"<function={_plain(tool)}>\n"), quoted("</function>")
        rules.append(f"call{i}: {' '.join([head, *parts, tail])}")
    return "\n".join(rules) + "\n"


def _parameter(tool: Tool, schema: Mapping[str, Any], name: str, value: Any) -> str:
    head = quoted(f"<parameter={name}>\n")
    value = value if isinstance(value, dict) else {}
    choices = value.get("enum")
    if isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices):
        return f'{head} ({" | ".join(map(quoted, choices))}) "\\n</parameter>\\n"'
    if value.get("type", "string") == "string" and "$ref" not in value:
        return f"{head} text"
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    lenient = tool[1].get("strict") is not True
    rule = json_rule(f"tools[{tool[0]}]", value | shared, lenient=lenient)
    return f'{head} {rule} "\\n</parameter>\\n"'


def _names(count: int) -> str:
    return " | ".join(f"call{i}" for i in range(count))


def _more(rule: str, *, sep: bool = False) -> str:
    return f' ("\\n" {rule})*' if sep else f" {rule}*"


def _plain(tool: Tool) -> str:
    """The function's name, which stands there without quotes."""
    name = str(tool[1]["name"])
    if not PLAIN_NAME.fullmatch(name):
        index = tool[0]
        raise bad_request(f"tools[{index}]: this name cannot be forced.", f"tools[{index}]")
    return name


def _tag(name: str) -> str:
    return name if PLAIN_NAME.fullmatch(name) else re.sub(r"[^\w.:-]", "", name)


_FORMATS: dict[str, Callable[[str, str, Sequence[Tool], bool], str]] = {
    "json_tools": _json,
    "qwen3_coder": _qwen3_coder,
}
