"""How models write tool calls, as rules of a Lark grammar.

Each format is that of one of mlx-lm's parsers. Rules define ``call`` or ``calls``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.tokenizer import Tokenizer

from .call_tags import GLM, MINIMAX, QWEN_CODER, tagged
from .call_writer import Tool, Writer, plain
from .structured import json_rule, quoted


def call_rules(tokenizer: Tokenizer, tools: Sequence[Tool], *, one: bool) -> str:
    """Rules that define ``calls``: one call of these tools, or any number. Raises ApiError."""
    write = _FORMATS.get(tokenizer.tool_format)
    assert write is not None
    return write(Writer(tokenizer, one), tools)


def can_force(tokenizer: Tokenizer) -> bool:
    """Whether the form of the model's calls is known."""
    return tokenizer.tool_format in _FORMATS


def _arguments(tool: Tool) -> str:
    index, function = tool
    schema = function.get("parameters")
    if not isinstance(schema, dict) or not schema:
        return '"{}"'
    schema = {"type": "object"} | schema
    return json_rule(f"tools[{index}]", schema, lenient=function.get("strict") is not True)


def _json(writer: Writer, tools: Sequence[Tool]) -> str:
    """``<tool_call>`` with name and arguments as one JSON object, as of Qwen and Hermes."""
    rules = [
        writer.each('"\\n"'),
        f'call: {writer.begin} "\\n" ({writer.names(tools)}) "\\n" {writer.end}',
        *(f"call{i}: {_object(tool)}" for i, tool in enumerate(tools)),
    ]
    return "\n".join(rules) + "\n"


def _object(tool: Tool) -> str:
    head = quoted(f'{{"name": {quoted(tool[1]["name"])}, "arguments": ')
    return f'{head} {_arguments(tool)} "}}"'


def _mistral(writer: Writer, tools: Sequence[Tool]) -> str:
    """``name[ARGS]`` and an object; of tokenizers without that marker, a list of objects."""
    mark = writer.marker("[ARGS]")
    if writer.tokenizer.added_token("[ARGS]") is None:
        more = "" if writer.one else f' (", " ({writer.names(tools)}))*'
        rules = [f'calls: {writer.begin} "[" ({writer.names(tools)}){more} "]"']
        rules += [f"call{i}: {_object(tool)}" for i, tool in enumerate(tools)]
        return "\n".join(rules) + "\n"
    rules = [writer.each(), f"call: {writer.begin} ({writer.names(tools)})"]
    for i, tool in enumerate(tools):
        name = quoted(plain(tool, r"[\w-]+"))
        rules.append(f"call{i}: {name} {mark} {_arguments(tool)}")
    return "\n".join(rules) + "\n"


def _kimi_k2(writer: Writer, tools: Sequence[Tool]) -> str:
    """A section of calls, each with a number of its own after its name."""
    words = ("begin", "argument_begin", "end")
    begin, between, end = (writer.marker(f"<|tool_call_{word}|>") for word in words)
    rules = [
        f"calls: {writer.begin} call{'' if writer.one else '+'} {writer.end}",
        f"call: {begin} ({writer.names(tools)}) {end}",
        "number: /[0-9]{1,3}/",
    ]
    for i, tool in enumerate(tools):
        name = quoted("functions." + plain(tool, r"[\w.-]+") + ":")
        rules.append(f"call{i}: {name} number {between} {_arguments(tool)}")
    return "\n".join(rules) + "\n"


Write = Callable[[Writer, Sequence[Tool]], str]
_FORMATS: Mapping[str, Write] = {
    "glm47": tagged(GLM),
    "json_tools": _json,
    "kimi_k2": _kimi_k2,
    "laguna": tagged(GLM),
    "longcat": _json,
    "minimax_m2": tagged(MINIMAX),
    "mistral": _mistral,
    "qwen3_coder": tagged(QWEN_CODER),
}
