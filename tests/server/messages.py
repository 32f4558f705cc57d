"""Bodies of ``/v1/messages``, and the events of their streams."""

from __future__ import annotations

import json
from typing import Any

ROUTE = "/v1/messages"
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}


def body(**more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "go"}]
    return {"model": "m", "max_tokens": 64, "messages": said} | more


def parsed(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each under the name of its type."""
    events = []
    for frame in text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
