"""What the tests of ``/v1/responses`` share: streams, checked event by event."""

from __future__ import annotations

import json
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

ROUTE = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
LAST = ("response.completed", "response.incomplete", "response.failed")


def checked(body: dict[str, Any]) -> dict[str, Any]:
    """A response object that OpenAI's own types accept."""
    Response.model_validate(body, strict=True)
    return body


def parsed(text: str) -> list[dict[str, Any]]:
    """The events of a stream, in the order and of the types that clients rely on."""
    frames = [frame.split("\n") for frame in text.rstrip("\n").split("\n\n")]
    events = []
    for number, (name, data) in enumerate(f for f in frames if f[0][0] != ":"):
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event, strict=True)
        events.append(event)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in LAST
    assert not set(kinds[:-1]) & set(LAST)
    assert_consistent(events)
    return events


def assert_consistent(events: list[dict[str, Any]]) -> None:
    """What was streamed of each item is what the whole response holds."""
    output = events[-1]["response"]["output"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert done == output
    assert [e["output_index"] for e in events if "item" in e] == [
        i for i in range(len(output)) for _ in ("added", "done")
    ]
    for item in output:
        pieces = "".join(
            e["delta"] for e in events if e.get("item_id") == item["id"] and "delta" in e
        )
        assert pieces == whole_of(item)


def whole_of(item: dict[str, Any]) -> str:
    """The text, thought or arguments of an item."""
    if item["type"] in ("message", "reasoning"):
        return "".join(part["text"] for part in item["content"])
    return str(item["arguments"] if item["type"] == "function_call" else item["input"])


def texts(response: dict[str, Any]) -> list[tuple[str, str]]:
    """Type and text of each output item."""
    return [(item["type"], whole_of(item)) for item in response["output"]]


async def whole(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(ROUTE, json={"model": "m", "input": "go"} | body)
    assert response.status_code == 200, response.text
    return checked(response.json())


async def streamed(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await http.post(ROUTE, json={"model": "m", "input": "go", "stream": True} | body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parsed(response.text)


async def refused(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The error of a request that is refused."""
    response = await http.post(ROUTE, json={"model": "m", "input": "go"} | body)
    assert response.status_code in (400, 404), response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["message"]
    return error
