"""``tool_choice``: whether a reply may call tools, must, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .errors import ApiError, bad_request

Tool = Mapping[str, Any]
Mode = Literal["auto", "none", "required"]


class ToolChoice(NamedTuple):
    """Whether tools may be called, and if not all of them, which: one by ``name``, or some."""

    mode: Mode = "auto"
    name: str | None = None
    allowed: frozenset[str] | None = None

    @property
    def forced(self) -> bool:
        """Whether the reply must be a call."""
        return self.mode == "required"

    def may(self, tool: Tool) -> bool:
        """Whether this tool may be called."""
        name = tool["function"]["name"]
        if self.mode == "none":
            return False
        if self.name is not None:
            return bool(name == self.name)
        return self.allowed is None or name in self.allowed

    def shown(self, tools: Sequence[Tool]) -> list[Tool]:
        """Those of ``tools`` that the prompt is to tell of.

        Where a grammar sees to it that no other is called, it tells of all, so that prompts begin
        alike whatever is forced.
        """
        if self.forced:
            return list(tools)
        return [tool for tool in tools if self.may(tool)]


def tool_choice(value: Any, tools: Sequence[Tool]) -> ToolChoice:
    """What the field ``tool_choice`` of OpenAI's dialects means. Raises ApiError."""
    if value is None or value == "auto":
        return ToolChoice()
    if value == "none":
        return ToolChoice("none")
    if value == "required":
        return _checked(ToolChoice("required"), tools)
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "function":
        return _checked(ToolChoice("required", _name(value)), tools)
    if kind == "allowed_tools":
        return _checked(_allowed(value.get("allowed_tools", value)), tools)
    raise _wrong("is auto, none, required, a function, or allowed_tools")


def _allowed(value: Any) -> ToolChoice:
    listed = value.get("tools") if isinstance(value, Mapping) else None
    mode = value.get("mode", "auto") if isinstance(value, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
        raise _wrong("allowed_tools needs a mode, auto or required, and tools")
    return ToolChoice(mode, None, frozenset(map(_name, listed)))


def _name(value: Any) -> str:
    """The name of the function that is meant, in the shape of chats or of responses."""
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise _wrong("needs the name of a function")
    return name


def _checked(choice: ToolChoice, tools: Sequence[Tool]) -> ToolChoice:
    """Refuses a choice of tools that are not offered."""
    if not tools:
        raise _wrong("needs tools")
    offered = {tool["function"]["name"] for tool in tools}
    named = {choice.name} if choice.name is not None else choice.allowed or frozenset()
    for name in named - offered:
        raise _wrong(f"names {str(name)[:60]!r}, which is not among the tools")
    return choice


def _wrong(what: str) -> ApiError:
    return bad_request(f"tool_choice {what}.", "tool_choice")
