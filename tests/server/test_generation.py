"""Replies as they come, in all dialects: nothing that was written is lost, or told out of order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from scheduler.events import Finished, Token
from scheduler.request import Request
from scheduler.streams import RequestStream

from .messages import TOOL, body
from .messages import parsed as anthropic_events
from .responses import parsed as response_events
from .scripted import Scripted, wired
from .support import events

pytestmark = pytest.mark.anyio

CHAT, TEXT, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}]}
CALL = '<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call>'


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app) as client:
        yield client


async def stream(http: httpx.AsyncClient, route: str, sent: dict[str, Any]) -> str:
    answer = await http.post(route, json={"model": "m", "stream": True, **sent})
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize("apart", [True, False])
async def test_what_came_before_a_failure_is_told(
    http: httpx.AsyncClient, service: Scripted, apart: bool
) -> None:
    # Held back at the time of the failure, for a stop string may begin with it.
    service.says, service.fails_after, service.apart = "one two three", 2, apart
    came = service.tokenizer.detokenizer()
    tokens = service.tokenizer.encode(service.says)[:2]
    expected = "".join([came.add(t) for t in tokens]) + came.finish()
    stop = expected[-1] + "#"

    *chunks, error = map(
        json.loads, events((await stream(http, CHAT, SAID | {"stop": stop})).splitlines())
    )
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == expected
    assert error["error"]["type"] == "server_error"

    sent = {"prompt": "go", "stop": stop}
    *chunks, error = map(json.loads, events((await stream(http, TEXT, sent)).splitlines()))
    assert "".join(c["choices"][0]["text"] for c in chunks) == expected
    assert error["error"]["type"] == "server_error"

    told = anthropic_events(await stream(http, MESSAGES, body(stop_sequences=[stop])))
    parts = [e["delta"]["text"] for e in told if e["type"] == "content_block_delta"]
    assert ("".join(parts), [e["type"] for e in told].count("error")) == (expected, 1)
    assert told[-1]["type"] == "error"

    last = response_events(await stream(http, RESPONSES, {"input": "go", "stop": stop}))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["output"][0]["content"][0]["text"] == expected


async def test_failure_of_one_choice_ends_the_others(
    http: httpx.AsyncClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = service.enqueue

    def first_fails(request: Request) -> RequestStream:
        if not service.requests:
            return enqueue(request)
        stream = service._streams[request.id] = RequestStream(request)
        return stream

    def under_way(name: str, reason: str = "abort") -> None:
        if name in service._streams:
            tokens = [Token(name, token) for token in service.tokenizer.encode("two")]
            service._say([*tokens, Finished(name, "abort", 1, 0, len(tokens))])

    monkeypatch.setattr(service, "enqueue", first_fails)
    monkeypatch.setattr(service, "abort", under_way)
    service.says, service.fails_after = "one", 9
    told = await stream(http, CHAT, SAID | {"n": 2})
    *chunks, error = map(json.loads, events(told.splitlines()))
    texts = ["", ""]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["one", "two"]
    assert error["error"]["message"] == "The engine failed."


@pytest.mark.parametrize("apart", [True, False])
async def test_order_does_not_depend_on_what_came_together(
    http: httpx.AsyncClient, service: Scripted, apart: bool
) -> None:
    service.says, service.apart = f"hm</think>\n\nA {CALL}B {CALL}\nC<think>well</think>D", apart
    kinds = ["thinking", "text", "tool_use", "text", "tool_use", "text", "thinking", "text"]
    sent = body(tools=[TOOL], thinking={"type": "adaptive"}, max_tokens=500)
    message = (await http.post(MESSAGES, json=sent)).json()
    assert [block["type"] for block in message["content"]] == kinds
    told = anthropic_events(await stream(http, MESSAGES, sent))
    begun = [e["content_block"]["type"] for e in told if e["type"] == "content_block_start"]
    assert begun == kinds

    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    asked = {"model": "m", "input": "go", "tools": [tool], "reasoning": {"effort": "high"}}
    output = (await http.post(RESPONSES, json=asked)).json()["output"]
    names = {"thinking": "reasoning", "text": "message", "tool_use": "function_call"}
    assert [item["type"] for item in output] == [names[kind] for kind in kinds]
    streamed = response_events(await stream(http, RESPONSES, asked))[-1]["response"]["output"]
    assert [item["type"] for item in streamed] == [names[kind] for kind in kinds]
