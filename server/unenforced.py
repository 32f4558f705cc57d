"""What a reply can be asked to be and nothing yet makes it: refused by name, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import bad_request


def refuse_format(format: dict[str, Any] | None, param: str) -> None:
    """Refuses every format of a reply but plain text. Raises ApiError 400."""
    if format is not None and format.get("type") != "text":
        raise bad_request(
            f"{param}: this server cannot keep a reply to a format yet.", param, "unsupported"
        )


def shown(
    choice: str | Mapping[str, Any] | None, tools: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those of ``tools`` that the prompt is to tell of. Raises ApiError 400 where one is forced."""
    if choice == "none":
        return []
    if choice in (None, "auto"):
        return list(tools)
    if isinstance(choice, Mapping) and choice.get("mode") == "auto":
        allowed = {tool["name"] for tool in choice["tools"]}
        return [tool for tool in tools if tool["function"]["name"] in allowed]
    raise bad_request(
        "tool_choice is 'auto' or 'none'; forcing a call is not supported by this server.",
        "tool_choice",
        "unsupported",
    )
