"""Which texts of calls are safe to give to a model's parser, whatever they hold. Pure.

The parsers of formats that are not JSON search with expressions that take a time in proportion to
the square of a malformed text, or the cube: minutes for 100,000 characters, while every stream
waits. So a long text must have the shape in which they find every part at their first try; that
is checked in linear time here. A short one may be anything.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

SHORT = 2048  # characters
MOST_PARTS = 1000  # of parsers that copy the rest of a text for each of its parts

ATTRIBUTES = "[^<>]{0,1024}"
NAME = r"""\s{0,64}=\s{0,64}(?:"[^"<>]{1,256}"|'[^'<>]{1,256}'|[^\s"'<>]{1,256})\s{0,64}"""
LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Load, ast.USub)
JSON_NAMES = ("true", "false", "null")
HEADER = re.compile(r"\s*(?:\[TOOL_CALLS\])?[\w-]{1,256}\s*\[ARGS\]\s*")
GEMMA = re.compile(r"\s*call:[\w-]{1,256}\{")


class _Markers(NamedTuple):
    """A format by its markers: in which order they come, each by its letter.

    What matches none of ``whole`` but one of ``parts`` is out of order.
    """

    whole: Sequence[str]  # the first is a, the next b, ...
    parts: Sequence[str]
    order: str

    def check(self, text: str) -> bool:
        """Whether the markers of a text come in order."""
        found = "|".join(f"({expression})" for expression in self.whole)
        every = re.compile("|".join([found, *map(re.escape, self.parts)]))
        letters = "".join(chr(ord("`") + (m.lastindex or 0)) for m in every.finditer(text))
        return re.fullmatch(self.order, letters) is not None


def is_safe(parser: str, text: str) -> bool:
    """Whether mlx-lm's ``parser`` reads a text in a time in proportion to its length."""
    if len(text) <= SHORT:
        return True
    check = _CHECKS.get(parser)
    return check is None or check(text)


def _keyed(prefix: str = "") -> _Markers:
    key, value = f"<{prefix}arg_key>", f"<{prefix}arg_value>"
    key_end, value_end = (marker.replace("<", "</") for marker in (key, value))
    between = rf"{key_end}(?:\\n|\s)*{value}"
    return _Markers((key, between, value_end), (key_end, value), "(abc)*")


def _tagged(outer: str, inner: str, order: str) -> _Markers:
    """Parameters in functions, each begun by such a tag and ended by the first word's own."""
    ends = [f"</{tag.split(' ')[0].split('=')[0]}>" for tag in (outer, inner)]
    tags = [re.escape(f"<{tag}") for tag in (outer, inner)]
    return _Markers((*tags, *ends), (), order)


def _pythonic(text: str) -> bool:
    """One list of calls with literals for arguments, as which it need not be searched."""
    start, end = text.find("["), text.rfind("]")
    try:
        parsed = ast.parse(text[start : end + 1], mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    calls = parsed.elts if isinstance(parsed, ast.List) else []
    return bool(calls) and all(isinstance(c, ast.Call) and _has_literals(c) for c in calls)


def _has_literals(call: ast.Call) -> bool:
    if call.args or not all(
        isinstance(n, (ast.Name, ast.Attribute, ast.Load)) for n in ast.walk(call.func)
    ):
        return False
    return all(
        keyword.arg is not None and all(map(_is_literal, ast.walk(keyword.value)))
        for keyword in call.keywords
    )


def _is_literal(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)
    return isinstance(node, LITERALS) or (isinstance(node, ast.Name) and node.id in JSON_NAMES)


def _gemma4(text: str) -> bool:
    """One call, whose braces are balanced outside of its strings."""
    parts = text.split('<|"|>')
    outside = "".join(parts[::2]).rstrip()
    if len(parts) % 2 == 0 or len(parts) > MOST_PARTS or not GEMMA.match(outside):
        return False
    depth = 0
    for brace in re.finditer("[{}]", outside):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end() == len(outside)
        if depth > 50:
            return False
    return False


def _function_gemma(text: str) -> bool:
    parts = text.split("<escape>")
    fields = sum(part.count(":") for part in parts[::2])
    return len(parts) + fields <= MOST_PARTS and text.rstrip().endswith("}")


def _mistral(text: str) -> bool:
    """A list in JSON, or names and objects by turns."""
    try:
        if text.lstrip().startswith("["):
            return isinstance(json.loads(text), list)
        at, end = 0, len(text.rstrip())
        while at < end:
            header = HEADER.match(text, at)
            if header is None:
                return False
            _, at = json.JSONDecoder().raw_decode(text, header.end())
    except (ValueError, RecursionError):
        return False
    return True


def _minicpm5(text: str) -> bool:
    head = re.match(NAME.replace("=", "=?", 1) + ">", text)
    markers = _Markers((rf"<param\s{{1,64}}name{NAME}>", "</param>"), ("<param",), "(ab)*")
    return head is not None and markers.check(text)


def _open(word: str) -> str:
    return re.escape(f"<|open|>{word}") + ATTRIBUTES + re.escape("<|sep|>")


def _close(word: str) -> str:
    return re.escape(f"<|close|>{word}<|sep|>")


_K2 = r"<\|tool_call_begin\|>\s{0,64}[^\s:<]{1,256}:\d{1,9}\s{0,64}<\|tool_call_argument_begin\|>"
_MUSE = [f"<atem:{tag}\\b{ATTRIBUTES}>" for tag in ("invoke", "parameter")]
_CHECKS: dict[str, Callable[[str], bool]] = {
    "function_gemma": _function_gemma,
    "gemma4": _gemma4,
    "glm47": _keyed().check,
    "kimi_k2": _Markers(
        (_K2, r"<\|tool_call_end\|>"),
        ("<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
        "(ab)*",
    ).check,
    "kimi_k3": _Markers(
        [mark(word) for word in ("call", "argument", "json") for mark in (_open, _close)],
        ("<|open|>call", "<|open|>argument", "<|open|>json"),
        "(a((cd)*|ef)b)*",
    ).check,
    "laguna": _keyed().check,
    "longcat": _keyed("longcat_").check,
    "minicpm5": _minicpm5,
    "minimax_m2": _tagged("invoke name=", "parameter name=", "(a(bd)*c)*").check,
    "mistral": _mistral,
    "muse_spark": _Markers(
        (*_MUSE, "</atem:invoke>", "</atem:parameter>"),
        ("<atem:invoke", "<atem:parameter"),
        "(a(bd)*c)*",
    ).check,
    "pythonic": _pythonic,
    "qwen3_coder": _tagged("function=", "parameter=", "a(bd)*c").check,
}
