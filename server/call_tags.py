"""Calls whose parameters stand in tags, as rules of a grammar: texts as they are, all else as JSON.

The parameters come in the order of the schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .call_writer import Tool, Writer, plain
from .errors import bad_request
from .structured import json_rule, quoted

KEYS = r"[^<>\"\\\s]{1,256}"  # what needs no quotes


class Tags(NamedTuple):
    """A format: ``{}`` is for a name, ``|`` is where markers that may be tokens begin or end.

    ``wrapped`` calls stand together between one pair of the model's markers.
    """

    head: str
    key: str
    end: str
    tail: str
    wrapped: bool = False
    lead: str = "\n"
    between: str = "\n"


QWEN_CODER = Tags("<function={}>\n", "<parameter={}>\n", "\n</parameter>\n", "</function>\n")
MINIMAX = Tags(
    '<invoke name="{}">\n', '<parameter name="{}">', "</parameter>\n", "</invoke>\n", wrapped=True
)
GLM = Tags("{}\n", "|<arg_key>|{}|</arg_key>|\n|<arg_value>|", "</arg_value>\n", "", lead="")


def tagged(tags: Tags) -> Callable[[Writer, Sequence[Tool]], str]:
    """What writes the rules for a format."""

    def write(writer: Writer, tools: Sequence[Tool]) -> str:
        lead = f"{quoted(tags.lead)} " if tags.lead else ""
        names = writer.names(tools)
        if tags.wrapped:
            many = "" if writer.one else "+"
            rules = [f"calls: {writer.begin} {lead}call{many} {writer.end}", f"call: {names}"]
        else:
            rules = [writer.each(quoted(tags.between))]
            rules.append(f"call: {writer.begin} {lead}({names}) {writer.end}")
        rules.append(writer.text("text", tags.end))
        for i, tool in enumerate(tools):
            rules.append(f"call{i}: {' '.join(_call(writer, tags, tool))}")
        return "\n".join(rules) + "\n"

    return write


def _call(writer: Writer, tags: Tags, tool: Tool) -> list[str]:
    schema = tool[1].get("parameters") or {}
    properties, required = schema.get("properties"), schema.get("required")
    properties = properties if isinstance(properties, dict) else {}
    required = required if isinstance(required, list) else []
    parts = [quoted(tags.head.format(plain(tool)))]
    for name, value in properties.items():
        part = f"{_spelled(writer, tags.key, _key(tool, name))} {_value(writer, tags, tool, value)}"
        parts.append(part if name in required else f"({part})?")
    return [*parts, quoted(tags.tail)] if tags.tail else parts


def _value(writer: Writer, tags: Tags, tool: Tool, value: Any) -> str:
    value = value if isinstance(value, dict) else {}
    end = _end(writer, tags.end)
    choices = value.get("enum")
    if isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices):
        return f"({' | '.join(map(quoted, choices))}) {end}"
    if value.get("type", "string") == "string" and "$ref" not in value:
        return "text"
    schema: Mapping[str, Any] = tool[1].get("parameters") or {}
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    lenient = tool[1].get("strict") is not True
    return f"{json_rule(f'tools[{tool[0]}]', value | shared, lenient=lenient)} {end}"


def _end(writer: Writer, end: str) -> str:
    marker = end.strip()
    if writer.tokenizer.added_token(marker) is None:
        return quoted(end)
    after = end[len(end.rstrip()) :]
    return writer.marker(marker) + (f" {quoted(after)}" if after else "")


def _spelled(writer: Writer, text: str, name: str) -> str:
    parts = [part.format(name) for part in text.split("|") if part]
    return " ".join(map(writer.marker, parts))


def _key(tool: Tool, name: str) -> str:
    if not re.fullmatch(KEYS, name):
        where = f"tools[{tool[0]}]"
        raise bad_request(f"{where}: a parameter's name cannot be forced.", where)
    return name
