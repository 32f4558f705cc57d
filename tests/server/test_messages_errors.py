"""What is wrong with a message, or goes wrong, is told in Anthropic's shape."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from scheduler.streams import QueueFull

from .messages import ROUTE, TOOL, body, parsed
from .scripted import Scripted, wired

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app) as client:
        yield client


BAD: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens", {"max_tokens": None}),
    ("max_tokens", {"max_tokens": 0}),
    ("messages", {"messages": []}),
    ("messages.0.role", {"messages": [{"role": "tool", "content": "x"}]}),
    ("messages.0.content", {"messages": [{"role": "user", "content": 1}]}),
    ("messages.0.content", {"messages": [{"role": "user", "content": []}]}),
    ("messages.0.content.0.type", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
    ("messages.0.content.0.text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    (
        "messages.0.content.0.content.0.type",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}
                    ],
                }
            ]
        },
    ),
    (
        "messages.0.content.0.source",
        {
            "messages": [
                {"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}
            ]
        },
    ),
    (
        "messages.0.content.0.id",
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]},
    ),
    ("system.0.type", {"system": [{"type": "image"}]}),
    ("temperature", {"temperature": -1}),
    ("top_p", {"top_p": 2}),
    ("top_k", {"top_k": -2}),
    ("stop_sequences", {"stop_sequences": [""]}),
    ("thinking.type", {"thinking": {"type": "hard"}}),
    ("thinking.budget_tokens", {"thinking": {"type": "enabled"}}),
    ("thinking.budget_tokens", {"thinking": {"type": "enabled", "budget_tokens": 1023}}),
    ("thinking.budget_tokens", {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
    ("output_config.effort", {"output_config": {"effort": "heroic"}}),
    ("tools.0.name", {"tools": [{"input_schema": {}}]}),
    ("tools.0.input_schema", {"tools": [{"name": "x"}]}),
    ("tools.0.type", {"tools": [{"name": "bash", "type": "bash_20250124"}]}),
    ("tools", {"tools": [TOOL] * 10_000}),
    ("tool_choice.type", {"tool_choice": {"type": "perhaps"}}),
    ("tool_choice", {"tool_choice": {"type": "any"}}),
    ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "jump"}}),
    ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "tool"}}),
    ("output_config.format", {"output_config": {"format": {"type": "text"}}}),
    ("output_format", {"output_format": {"type": "json_schema", "schema": 1}}),
    ("mcp_servers", {"mcp_servers": [{"type": "url", "url": "https://localhost"}]}),
    ("service_tier", {"service_tier": "gold"}),
    ("n", {"n": 2}),
    ("stop", {"stop": "x"}),
]


@pytest.mark.parametrize(("param", "more"), BAD, ids=[param for param, _ in BAD])
async def test_bad_input_is_named(
    http: httpx.AsyncClient, service: Scripted, param: str, more: dict[str, Any]
) -> None:
    response = await http.post(ROUTE, json=body(**more))
    assert response.status_code == 400, response.text
    answer = response.json()
    assert answer.keys() == {"type", "error", "request_id"}
    assert answer["request_id"] == response.headers["request-id"]
    assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    assert answer["error"]["param"] == param
    assert answer["error"]["message"].startswith(f"{param}: ")
    assert not service.requests


async def test_too_long_a_prompt_is_told_in_anthropics_words(http: httpx.AsyncClient) -> None:
    response = await http.post(ROUTE, json=body(system="long " * 5000))
    message = response.json()["error"]["message"]
    count = (await http.post(f"{ROUTE}/count_tokens", json=body(system="long " * 5000))).json()
    assert response.status_code == 400
    assert message == f"prompt is too long: {count['input_tokens']} tokens > 4095 maximum"


async def test_errors_have_anthropics_shape(
    http: httpx.AsyncClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = await http.post(ROUTE, json=body(model="x"))
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    nowhere = await http.get(f"{ROUTE}/nowhere")
    assert (nowhere.status_code, nowhere.json()["error"]["type"]) == (404, "not_found_error")
    text = await http.post(ROUTE, content=b"{}", headers={"content-type": "text/plain"})
    assert (text.status_code, text.json()["type"]) == (415, "error")

    def full(*_: Any) -> None:
        raise QueueFull

    monkeypatch.setattr(service, "reserve", full)
    busy = await http.post(ROUTE, json=body())
    assert (busy.status_code, busy.json()["error"]["type"]) == (529, "overloaded_error")


async def test_error_in_a_stream(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says, service.fails_after = "one two three", 2
    response = await http.post(ROUTE, json=body(stream=True))
    events = parsed(response.text)
    assert [e["type"] for e in events[:3]] == ["message_start", "ping", "content_block_start"]
    assert events[-1]["type"] == "error"
    assert events[-1]["error"] == {"type": "api_error", "message": "The engine failed."}
    assert events[-1]["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize("depth", [150, 400, 5000, 100_000])
@pytest.mark.parametrize("field", ["tools", "messages", "metadata"])
async def test_deep_bodies_are_answered_at_once(
    http: httpx.AsyncClient, field: str, depth: int
) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    given = {
        "tools": f'[{{"name": "x", "input_schema": {deep}}}]',
        "messages": f'[{{"role": "assistant", "content": [{{"type": "tool_use", "id": "a", '
        f'"name": "x", "input": {deep}}}]}}]',
        "metadata": deep,
    }[field]
    began = time.process_time()
    fields = body()
    fields.pop(field, None)
    text = json.dumps(fields)[:-1] + f', "{field}": {given}}}'
    response = await http.post(ROUTE, content=text, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert field in response.json()["error"]["param"]
    assert time.process_time() - began < 1


@pytest.mark.parametrize("where", ["system", "messages", "stop_sequences"])
async def test_lone_surrogates_are_refused(http: httpx.AsyncClient, where: str) -> None:
    half = "\\ud800"
    given = {
        "system": f'"{half}"',
        "messages": f'[{{"role": "user", "content": "{half}"}}]',
        "stop_sequences": f'["{half}"]',
    }[where]
    fields = body()
    fields.pop(where, None)
    text = json.dumps(fields)[:-1] + f', "{where}": {given}}}'
    response = await http.post(ROUTE, content=text, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert where in response.json()["error"]["param"]
