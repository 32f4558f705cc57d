"""What a reply can be asked to be and nothing yet makes it: refused by name, in one place."""

from __future__ import annotations

from typing import Any

from .errors import bad_request


def refuse_format(format: dict[str, Any] | None, param: str) -> None:
    """Refuses every format of a reply but plain text. Raises ApiError 400."""
    if format is not None and format.get("type") != "text":
        raise bad_request(
            f"{param}: this server cannot keep a reply to a format yet.", param, "unsupported"
        )


def refuse_forced() -> None:
    """Refuses to force a tool call. Raises ApiError 400."""
    raise bad_request(
        "tool_choice is 'auto' or 'none'; forcing a call is not supported by this server.",
        "tool_choice",
        "unsupported",
    )
