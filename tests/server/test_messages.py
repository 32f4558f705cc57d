"""``/v1/messages`` on the wire: the application on an engine that says what it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import TypeAdapter

from server.messages_reply import SIGNATURE

from .messages import ROUTE, TOOL, body, parsed
from .scripted import Scripted, wired

pytestmark = pytest.mark.anyio

CALL = '<tool_call>\n{"name": "look", "arguments": {"x": "é"}}\n</tool_call>'
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app) as client:
        yield client


async def whole(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await http.post(ROUTE, json=body(**more))
    assert response.status_code == 200, response.text
    assert response.headers["request-id"] == response.headers["x-request-id"]
    Message.model_validate_json(response.content, strict=True)
    message: dict[str, Any] = response.json()
    return message


async def streamed(http: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    """The events of a stream, pings excepted, whose order is checked."""
    response = await http.post(ROUTE, json=body(stream=True, **more))
    assert response.status_code == 200, response.text
    events = parsed(response.text)
    assert [e["type"] for e in events[:2]] == ["message_start", "ping"]
    events = [e for e in events if e["type"] != "ping"]
    for event in events:
        EVENT.validate_json(json.dumps(event), strict=True)
    assert [e["type"] for e in events[-2:]] == ["message_delta", "message_stop"]
    opened = None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert opened is None
            opened = event["index"]
        assert event["index"] == opened
        opened = None if event["type"] == "content_block_stop" else opened
    assert opened is None
    return events


def blocks(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that a stream's events add up to."""
    made: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            made.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            name = {"text_delta": "text", "thinking_delta": "thinking"}.get(delta["type"])
            name = (
                name or {"signature_delta": "signature", "input_json_delta": "json"}[delta["type"]]
            )
            made[-1][name] += delta.get(name, delta.get("partial_json"))
    for block in made:
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text or "{}")
    return made


def alike(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``content`` without the names of calls, which no two replies share."""
    return [{k: v for k, v in block.items() if k != "id"} for block in content]


REPLIES: list[tuple[str, dict[str, Any], list[dict[str, Any]], str]] = [
    ("yes", {}, [{"type": "text", "text": "yes"}], "end_turn"),
    ("", {}, [{"type": "text", "text": ""}], "end_turn"),
    (
        "hm</think>\n\nyes",
        {"thinking": {"type": "adaptive"}},
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}],
        "end_turn",
    ),
    (
        "hm</think>\n\nyes",
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        [{"type": "thinking", "thinking": ""}, {"type": "text", "text": "yes"}],
        "end_turn",
    ),
    (
        f"hm</think>\n\nLet me see.{CALL}\n{CALL}",
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
        [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "name": "look", "input": {"x": "é"}},
            {"type": "tool_use", "name": "look", "input": {"x": "é"}},
        ],
        "tool_use",
    ),
    (
        f"{CALL}{CALL}",
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        [{"type": "tool_use", "name": "look", "input": {"x": "é"}}],
        "tool_use",
    ),
    # Arguments that are no object; clients take nothing else.
    (
        CALL.replace('{"x": "é"}', '"é"'),
        {},
        [{"type": "tool_use", "name": "look", "input": {"input": "é"}}],
        "tool_use",
    ),
    (CALL, {"tool_choice": {"type": "none"}}, [{"type": "text", "text": CALL}], "end_turn"),
]


@pytest.mark.parametrize(("says", "more", "content", "reason"), REPLIES)
async def test_reply(
    http: httpx.AsyncClient,
    service: Scripted,
    says: str,
    more: dict[str, Any],
    content: list[dict[str, Any]],
    reason: str,
) -> None:
    service.says = says
    message = await whole(http, tools=[TOOL], **more)
    events = await streamed(http, tools=[TOOL], **more)
    for block in message["content"]:
        assert block.get("id", "toolu_").startswith("toolu_")
    signed = [b | {"signature": SIGNATURE} if b["type"] == "thinking" else b for b in content]
    assert alike(message["content"]) == signed
    assert alike(blocks(events)) == signed
    assert message["stop_reason"] == reason
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": None}
    assert events[0]["message"]["stop_reason"] is None
    usage = message["usage"]
    assert usage["input_tokens"] == len(service.requests[-1].prompt)
    assert events[-2]["usage"].items() <= usage.items()


async def test_stop_sequence(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = "one two three"
    message = await whole(http, stop_sequences=["four", " two"])
    assert message["content"] == [{"type": "text", "text": "one"}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", " two")
    events = await streamed(http, stop_sequences=["four", " two"])
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " two"}


async def test_conversation_reaches_the_template(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "ok"
    await whole(
        http,
        system=[{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}],
        tools=[TOOL],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "go"}]},
            {"role": "system", "content": "Mind the gap."},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "a", "name": "look", "input": {"x": 1}},
                    {"type": "tool_use", "id": "b", "name": "look", "input": {"x": 2}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "seen"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "is_error": True,
                        "content": [
                            {"type": "text", "text": "no"},
                            {"type": "text", "text": "way"},
                        ],
                    },
                    {"type": "text", "text": "go on"},
                ],
            },
            {"role": "user", "content": "now"},
        ],
    )
    prompt = service.prompt
    assert "<|im_start|>system\nBe kind.\n\nBe brief.\n" in prompt
    assert (
        "<|im_start|>user\ngo\n\n<system-reminder>\nMind the gap.\n</system-reminder><|im_end|>"
        in prompt
    )
    assert "<think>\nhm\n</think>\n\nI look.\n<tool_call>" in prompt
    assert '{"name": "look", "arguments": {"x": 2}}' in prompt
    results = "<tool_response>\nseen\n</tool_response>\n<tool_response>\nError: no\nway\n"
    assert results in prompt
    assert "<|im_start|>user\ngo on\n\nnow<|im_end|>" in prompt
    assert prompt.count("<|im_start|>system") == 1


async def test_prefill_is_continued(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = " fine"
    said = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "All is"}]
    message = await whole(http, messages=said)
    assert service.prompt.endswith("All is")
    assert message["content"] == [{"type": "text", "text": " fine"}]


async def test_what_only_a_hosted_service_runs_is_left_out(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    hosted = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    service.says = "ok"
    await whole(http, tools=[hosted, TOOL | {"strict": True, "defer_loading": True}])
    assert "web_search" not in service.prompt
    assert '"look"' in service.prompt


async def test_what_betas_add_is_accepted(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = "ok"
    response = await http.post(
        f"{ROUTE}?beta=true",
        headers={"anthropic-version": "2023-06-01", "anthropic-beta": "made-up-2031-01-01"},
        json=body(
            context_management={"edits": [{"type": "clear_thinking_20251015"}]},
            metadata={"user_id": "somebody"},
            container=None,
            service_tier="standard_only",
            output_config={"effort": "high"},
            cache_control={"type": "ephemeral"},
            what_is_yet_to_come={"deep": [1, 2]},
        ),
    )
    assert response.status_code == 200, response.text
    assert service.requests[-1].agent


async def test_cache_control_tells_what_is_written(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "ok"
    marked = [{"type": "text", "text": "go", "cache_control": {"type": "ephemeral"}}]
    message = await whole(http, messages=[{"role": "user", "content": marked}])
    usage, prompt = message["usage"], len(service.requests[-1].prompt)
    assert usage["cache_read_input_tokens"] == 0
    assert usage["cache_creation_input_tokens"] == prompt - 1
    assert usage["input_tokens"] == 1
    plain = (await whole(http))["usage"]
    assert (plain["cache_creation_input_tokens"], plain["input_tokens"]) == (0, prompt)


async def test_count_is_what_a_message_uses(http: httpx.AsyncClient, service: Scripted) -> None:
    asked = body(tools=[TOOL], system="Be kind.", thinking={"type": "adaptive"})
    del asked["max_tokens"]
    response = await http.post(f"{ROUTE}/count_tokens", json=asked)
    MessageTokensCount.model_validate_json(response.content, strict=True)
    assert not service.requests
    await whole(http, **asked)
    assert response.json() == {"input_tokens": len(service.requests[-1].prompt)}


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "look"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ],
)
async def test_what_is_forced_reaches_the_engine(
    http: httpx.AsyncClient, service: Scripted, more: dict[str, Any]
) -> None:
    await http.post(ROUTE, json=body(**more))
    constraint = service.requests[-1].constraint
    assert constraint is not None
    assert constraint.grammar is not None
    assert ('"look"' in service.prompt) == ("tools" in more)


async def test_thinking_budget_reaches_the_engine(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    await http.post(ROUTE, json=body(max_tokens=2000, thinking=thinking))
    constraint = service.requests[-1].constraint
    assert constraint is not None
    assert constraint.budget == 1024
    await http.post(ROUTE, json=body(thinking={"type": "adaptive"}))
    assert service.requests[-1].constraint is None


async def test_more_than_the_context_has_left_is_clipped(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    await whole(http, max_tokens=32000)
    request = service.requests[-1]
    assert request.max_tokens == 4096 - len(request.prompt)


async def test_head_and_models(http: httpx.AsyncClient) -> None:
    assert (await http.head("/")).status_code == 200
    headers = {"anthropic-version": "2023-06-01"}
    page = (await http.get("/v1/models?limit=1000", headers=headers)).json()
    assert [m["id"] for m in page["data"]] == ["m"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("m", "m", False)
    assert (await http.get("/v1/models?after_id=m", headers=headers)).json()["data"] == []
    assert (await http.get("/v1/models/m", headers=headers)).json() == page["data"][0]
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("before_id=y", "before_id")):
        refused = await http.get(f"/v1/models?{query}", headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert (await http.get("/v1/models")).json()["object"] == "list"
