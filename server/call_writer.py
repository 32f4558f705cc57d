"""What all formats of calls need to be written down as rules of a grammar."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.tokenizer import Tokenizer

from .errors import bad_request
from .structured import quoted

Tool = tuple[int, Mapping[str, Any]]
"""A function, and where it is in the request's list."""


class Writer:
    """Writes the rules for one model; ``one`` allows but one call."""

    def __init__(self, tokenizer: Tokenizer, one: bool) -> None:
        assert tokenizer.tool_call is not None
        self.tokenizer = tokenizer
        self.one = one
        self.begin, self.end = map(self.marker, tokenizer.tool_call)

    def marker(self, text: str) -> str:
        """A marker, which is often a token of its own and then not to be had as text."""
        token = self.tokenizer.added_token(text)
        return quoted(text) if token is None else f"<[{token}]>"

    def text(self, rule: str, end: str) -> str:
        """A rule for any text up to a marker, the marker included."""
        token = self.tokenizer.added_token(end.strip())
        if token is None:
            return f"{rule}[suffix={quoted(end)}]: /(?s:.*)/"
        after = end[len(end.rstrip()) :]
        return f"{rule}: /(?s:.*)/ <[{token}]>{f' {quoted(after)}' if after else ''}"

    def each(self, between: str = "") -> str:
        """The rule for calls that are made of ``call``."""
        return "calls: call" if self.one else f"calls: call ({between} call)*"

    @staticmethod
    def names(tools: Sequence[Tool]) -> str:
        """Any of the tools, each of which has a rule."""
        return " | ".join(f"call{i}" for i in range(len(tools)))


def plain(tool: Tool, allowed: str = r"[\w.:-]+") -> str:
    """The function's name, which stands there without quotes. Raises ApiError."""
    index, name = tool[0], str(tool[1]["name"])
    if not re.fullmatch(allowed, name):
        raise bad_request(f"tools[{index}]: this name cannot be forced.", f"tools[{index}]")
    return name
