"""Tool calls and thoughts on the wire: the application on an engine that says what it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from .scripted import Scripted, wired
from .support import chunks

pytestmark = pytest.mark.anyio

ROUTE = "/v1/chat/completions"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object"}},
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"x": "é"}}\n</tool_call>'


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app) as client:
        yield client


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "go"}], "tools": [TOOL]} | more


async def whole(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await http.post(ROUTE, json=body(**more))
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate_json(response.content, strict=True)
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def streamed(http: httpx.AsyncClient, **more: Any) -> tuple[list[dict[str, Any]], str]:
    """The deltas of a stream and its finish reason."""
    response = await http.post(ROUTE, json=body(stream=True, **more))
    parts = chunks(response.text.splitlines())
    for part in parts:
        ChatCompletionChunk.model_validate(part, strict=True)
    reasons = [p["choices"][0]["finish_reason"] for p in parts]
    assert reasons[:-1] == [None] * (len(parts) - 1)
    return [p["choices"][0]["delta"] for p in parts], reasons[-1]


def joined(deltas: list[dict[str, Any]], name: str) -> str:
    return "".join(d.get(name) or "" for d in deltas)


async def test_tool_call(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = CALL
    choice = await whole(http)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) == {"x": "é"}
    deltas, reason = await streamed(http)
    first, *more = [c for d in deltas for c in d.get("tool_calls", [])]
    assert reason == "tool_calls"
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "look")
    assert all(part.keys() == {"index", "function"} for part in more)
    arguments = "".join(part["function"]["arguments"] for part in (first, *more))
    assert arguments == call["function"]["arguments"]
    assert joined(deltas, "content") == ""
    assert '"name": "look"' in service.prompt


async def test_arguments_reach_the_sdk_as_they_are_written(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says, service.apart = f"Let me see.{CALL}", True
    tool: Any = {"type": "function", "function": TOOL["function"] | {"strict": True}}
    said: Any = body()["messages"]
    async with AsyncOpenAI(base_url="http://server/v1", api_key="-", http_client=http) as client:
        asked = client.chat.completions.stream(model="m", messages=said, tools=[tool])
        async with asked as stream:
            pieces = [
                event.arguments_delta
                async for event in stream
                if event.type == "tool_calls.function.arguments.delta"
            ]
            choice = (await stream.get_final_completion()).choices[0]
    assert len(pieces) > 4
    assert "".join(pieces) == '{"x": "é"}'
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    (call,) = choice.message.tool_calls or ()
    assert (call.function.name, call.function.parsed_arguments) == ("look", {"x": "é"})


async def test_text_and_two_calls(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = f"Let me see.{CALL}\n{CALL}"
    choice = await whole(http)
    assert choice["message"]["content"] == "Let me see."
    assert len({c["id"] for c in choice["message"]["tool_calls"]}) == 2
    deltas, _ = await streamed(http)
    parts = [c for d in deltas for c in d.get("tool_calls", [])]
    assert [p["index"] for p in parts if "id" in p] == [0, 1]
    assert all("</" not in p["function"]["arguments"] for p in parts)
    assert joined(deltas, "content") == "Let me see."
    single = await whole(http, parallel_tool_calls=False)
    assert len(single["message"]["tool_calls"]) == 1
    assert single["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"tools": None}, {"tools": []}])
async def test_no_tools_no_calls(
    http: httpx.AsyncClient, service: Scripted, more: dict[str, Any]
) -> None:
    service.says = CALL
    choice = await whole(http, **more)
    assert choice["message"]["content"] == CALL
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"
    assert "look" not in service.prompt


async def test_malformed_call_is_text(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = "<tool_call>look around</tool_call>"
    choice = await whole(http)
    assert choice["message"]["content"] == "look around"
    assert choice["finish_reason"] == "stop"


async def test_half_a_call_of_a_stream_is_no_call_to_make(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = '<tool_call>{"name": "look", "arguments": {"x": '
    deltas, reason = await streamed(http)
    parts = [c for d in deltas for c in d.get("tool_calls", [])]
    assert reason == "stop"
    assert "".join(p["function"]["arguments"] for p in parts) == '{"x": '
    choice = await whole(http)
    assert choice["message"]["content"] == '{"name": "look", "arguments": {"x": '
    assert choice["finish_reason"] == "stop"


async def test_half_a_surrogate_pair_in_an_earlier_call_does_no_harm(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "ok"
    function = {"name": "look", "arguments": '{"x": "\\ud800"}'}
    call = {"id": "c1", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
    ]
    await whole(http, messages=messages)
    assert '{"x": "?"}' in service.prompt


async def test_thoughts_are_counted_in_usage(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = "well well</think>\n\nyes"
    for effort, least in (("high", 1), ("none", 0)):
        response = await http.post(ROUTE, json=body(reasoning_effort=effort))
        usage = response.json()["usage"]
        thought = usage["completion_tokens_details"]["reasoning_tokens"]
        assert thought == (len(service.tokenizer.encode("well well")) if least else 0)
        assert thought < usage["completion_tokens"]


async def test_thought_of_an_earlier_turn_under_either_name(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "ok"
    for name in ("reasoning", "reasoning_content"):
        messages = [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "gone", name: "so be it"},
            {"role": "user", "content": "on"},
        ]
        await whole(http, messages=messages)
        assert "<think>\nso be it\n</think>\n\ngone" in service.prompt


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({}, "so it"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "so it"),
        ({"continue_final_message": False}, "so it<|im_end|>\n<|im_start|>assistant\n"),
        ({"add_generation_prompt": True}, "so it<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
async def test_answer_begun_by_the_client(
    http: httpx.AsyncClient, service: Scripted, more: dict[str, Any], end: str
) -> None:
    service.says = " goes"
    said = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "so it"}]
    choice = await whole(http, messages=said, **more)
    assert choice["message"]["content"] == " goes"
    assert service.prompt.removesuffix("<think>\n\n</think>\n\n").endswith(end)


@pytest.mark.parametrize(
    "more",
    [
        {"store": True, "user": "u", "metadata": {"k": "v"}, "verbosity": "low"},
        {"prediction": {"type": "content", "content": "ok"}},
        {"prediction": {"type": "content", "content": [{"type": "text", "text": "ok"}]}},
    ],
)
async def test_what_has_no_effect_is_taken(
    http: httpx.AsyncClient, service: Scripted, more: dict[str, Any]
) -> None:
    service.says = "ok"
    assert (await whole(http, **more))["message"]["content"] == "ok"


async def test_call_with_a_lone_surrogate_can_be_sent(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = '<tool_call>{"name": "look", "arguments": {"x": "\\ud800"}}</tool_call>'
    choice = await whole(http)
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"x": "?"}
    _, reason = await streamed(http)
    assert reason == "tool_calls"


async def test_thought(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = "hm</think>\n\nyes"
    message = (await whole(http, reasoning_effort="high"))["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "yes")
    assert message["reasoning"] == message["reasoning_content"]
    deltas, reason = await streamed(http, chat_template_kwargs={"enable_thinking": True})
    assert (joined(deltas, "reasoning_content"), joined(deltas, "content")) == ("hm", "yes")
    assert reason == "stop"
    message = (await whole(http, reasoning_effort="none"))["message"]
    assert "reasoning_content" not in message


@pytest.mark.parametrize(
    "asked",
    [
        {"thinking_token_budget": 7},
        {"thinking_budget": 7},
        {"thinking_budget": 7, "chat_template_kwargs": {"thinking_budget": 7}},
    ],
)
async def test_thinking_budget_reaches_the_engine(
    http: httpx.AsyncClient, service: Scripted, asked: dict[str, Any]
) -> None:
    service.says = "hm</think>\n\nyes"
    for path, said in ((ROUTE, body()), ("/v1/responses", {"model": "m", "input": "go"})):
        (await http.post(path, json=said | asked)).raise_for_status()
        constraint = service.requests[-1].constraint
        assert constraint is not None
        assert constraint.budget == 7
        (await http.post(path, json=said | {"thinking_budget": -1})).raise_for_status()
        assert service.requests[-1].constraint is None


async def test_stop_string_leaves_no_reply_behind(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "one two three"
    choice = await whole(http, stop=" two")
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one", "stop")
    assert service.outstanding == 0


async def test_earlier_calls_and_results_reach_the_template(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "ok"
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
    ]
    await whole(http, messages=messages)
    assert '<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call>' in service.prompt
    assert "<tool_response>\nseen\n</tool_response>" in service.prompt
