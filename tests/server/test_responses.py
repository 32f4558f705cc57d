"""``/v1/responses`` on an engine that says what it is told: items, events, tools, errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from server.response_input import seal, unseal

from .responses import ROUTE, refused, streamed, texts, whole
from .scripted import Scripted, wired

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"x": "é"}}\n</tool_call>'


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app) as client:
        yield client


# what comes out


async def test_text(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = "Good day."
    response = await whole(http, metadata={"k": "v"}, max_output_tokens=50, user="u")
    assert texts(response) == [("message", "Good day.")]
    assert response["status"] == "completed"
    assert response["usage"]["total_tokens"] == sum(
        response["usage"][name] for name in ("input_tokens", "output_tokens")
    )
    assert (response["metadata"], response["max_output_tokens"]) == ({"k": "v"}, 50)
    assert (response["temperature"], response["top_p"]) == (0.6, 0.95)  # the model's own
    events = await streamed(http)
    assert texts(events[-1]["response"]) == [("message", "Good day.")]
    kinds = [e["type"].removeprefix("response.") for e in events]
    assert kinds[2:4] == ["output_item.added", "content_part.added"]
    assert kinds[-4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert set(kinds[4:-4]) == {"output_text.delta"}


async def test_thought_text_and_calls(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = f"hm</think>\n\nLet me see.{CALL}\n{CALL}"
    expected = [
        ("reasoning", "hm"),
        ("message", "Let me see."),
        ("function_call", '{"x": "é"}'),
        ("function_call", '{"x": "é"}'),
    ]
    think: dict[str, Any] = {"reasoning": {"effort": "high", "summary": "auto"}, "tools": [TOOL]}
    response = await whole(http, **think)
    assert texts(response) == expected
    assert len({item["call_id"] for item in response["output"][2:]}) == 2
    events = await streamed(http, **think)
    assert texts(events[-1]["response"]) == expected
    kinds = [e["type"] for e in events]
    assert "response.reasoning_text.delta" in kinds
    assert kinds.count("response.function_call_arguments.done") == 2
    single = await whole(http, **think, parallel_tool_calls=False)
    assert texts(single) == expected[:3]


async def test_no_thinking_on_request(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = "yes"
    response = await whole(http, reasoning={"effort": "none"})
    assert texts(response) == [("message", "yes")]


async def test_reply_cut_by_its_length(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says, service.reason = "and so", "length"
    response = await whole(http)
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert response["output"][0]["status"] == "incomplete"
    assert (await streamed(http))[-1]["type"] == "response.incomplete"


async def test_failure_ends_the_stream(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says, service.fails_after = "one two three", 2
    last = (await streamed(http))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"
    answer = await http.post(ROUTE, json={"model": "m", "input": "go"})
    assert answer.status_code == 503


# tools under the names that clients know


NAMESPACE = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files.",
    "tools": [{"type": "function", "name": "read__all", "parameters": {"type": "object"}}],
}


async def test_namespaced_tool_comes_back_as_the_client_knows_it(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    flat = "mcp__files__read__all"
    service.says = CALL.replace("look", flat)
    clash = {"type": "function", "name": flat}
    tools = [NAMESPACE, clash, {"type": "web_search", "external_web_access": True}]
    (call,) = (await whole(http, tools=tools))["output"]
    assert (call["name"], call["namespace"]) == ("read__all", "mcp__files")
    assert f'"name": "{flat}"' in service.prompt
    assert f'"name": "{flat}_2"' in service.prompt
    assert "web_search" not in service.prompt
    service.says = CALL.replace("look", f"{flat}_2")
    (other,) = (await whole(http, tools=tools))["output"]
    assert (other["name"], other.get("namespace")) == (flat, None)
    # and back into the model's words
    again = [{"role": "user", "content": "go"}, call]
    again.append({"type": "function_call_output", "call_id": call["call_id"], "output": "a.txt"})
    await whole(http, tools=tools, input=again)
    assert f'<tool_call>\n{{"name": "{flat}", "arguments"' in service.prompt
    assert "<tool_response>\na.txt\n</tool_response>" in service.prompt


def custom(**format: str) -> dict[str, Any]:
    return {"type": "custom", "name": "apply", "description": "Patch.", "format": format}


async def test_freeform_tool(http: httpx.AsyncClient, service: Scripted) -> None:
    tools = [custom(type="grammar", syntax="lark", definition="start: /.+/")]
    service.says = (
        '<tool_call>\n{"name": "apply", "arguments": {"input": "*** a\\n"}}\n</tool_call>'
    )
    events = await streamed(http, tools=tools)
    (call,) = events[-1]["response"]["output"]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "apply", "*** a\n")
    assert "start: /.+/" in service.prompt
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done"}
    again = [{"role": "user", "content": "go"}, call, output]
    service.says = "ok"
    await whole(http, tools=tools, input=again)
    assert '{"input": "*** a\\n"}' in service.prompt
    assert "<tool_response>\ndone\n</tool_response>" in service.prompt


async def test_allowed_and_no_tools(http: httpx.AsyncClient, service: Scripted) -> None:
    other = TOOL | {"name": "other"}
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "look"}],
    }
    await whole(http, tools=[TOOL, other], tool_choice=allowed)
    assert '"look"' in service.prompt
    assert '"other"' not in service.prompt
    await whole(http, tools=[TOOL], tool_choice="none")
    assert '"look"' not in service.prompt


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "read__all", "namespace": "mcp__files"},
        {"type": "function", "name": "read__all"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}, TOOL]},
    ],
)
async def test_forced_calls_constrain_the_reply(
    http: httpx.AsyncClient, service: Scripted, choice: Any
) -> None:
    await whole(http, tools=[TOOL, NAMESPACE], tool_choice=choice)
    assert service.requests[-1].constraint is not None
    assert '"look"' in service.prompt and "read__all" in service.prompt


# what goes in


LEAD = {"type": "message", "role": "developer", "content": "A"}


async def test_instructions_and_developer_items(http: httpx.AsyncClient, service: Scripted) -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "B"}]},
        {"role": "user", "content": "C"},
        {"role": "user", "content": "D"},
        {"type": "message", "role": "developer", "content": "E"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "F"}]},
        {"role": "user", "content": "G"},
    ]
    user = "C\n\nD\n\n<system-reminder>\nE\n</system-reminder>"
    begun = f"<system-reminder>\nB\n</system-reminder>\n\n{user}"
    cases = (("A", "A", begun, items), (None, "B", user, items), ("", "B", user, items))
    for instructions, system, first, given in (*cases, (None, "A", begun, [LEAD, *items])):
        await whole(http, instructions=instructions, input=given)
        assert service.prompt.startswith(
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{first}<|im_end|>\n"
        )
        assert "F<|im_end|>\n<|im_start|>user\nG<|im_end|>" in service.prompt


async def test_thoughts_come_back_sealed(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = f"hm, well</think>\n\n{CALL}"
    asked: dict[str, Any] = {"reasoning": {"effort": "high"}, "tools": [TOOL]}
    include = ["reasoning.encrypted_content"]
    thought, call = (await whole(http, **asked, include=include))["output"]
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]}
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "seen"}
    items = [{"role": "user", "content": "go"}, sealed, call, output]
    await whole(http, **asked, input=items)
    assert "<think>\nhm, well\n</think>" in service.prompt
    sealed["encrypted_content"] = "gAAAA-of-another-service"
    await whole(http, **asked, input=items)
    sealed["encrypted_content"] = thought["encrypted_content"][:-8]
    error = await refused(http, **asked, input=items)
    assert error["param"] == "input[1].encrypted_content"


def test_sealed_thoughts_do_not_grow_when_they_are_opened() -> None:
    thought = "a" * 1000
    assert unseal(seal(thought), "") == thought
    assert len(seal(thought)) > len(thought)


async def test_what_hosted_tools_would_tell_may_be_asked_for(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    await whole(http, tools=[{"type": "web_search"}], include=["web_search_call.action.sources"])
    for verbosity in ("low", "medium", "high"):
        told = (await whole(http, text={"verbosity": verbosity}))["text"]
        assert told["verbosity"] == verbosity


async def test_continued_by_id(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says = CALL
    first = await whole(http, tools=[TOOL], instructions="Old.", input="one")
    output = {
        "type": "function_call_output",
        "call_id": first["output"][0]["call_id"],
        "output": [{"type": "input_text", "text": "two"}],
    }
    service.says = "three"
    previous = first["id"]
    second = await whole(http, tools=[TOOL], input=[output], previous_response_id=previous)
    assert "Old." not in service.prompt
    assert "one<|im_end|>" in service.prompt
    assert "<tool_response>\ntwo\n</tool_response>" in service.prompt
    third = await whole(
        http,
        input=[
            {"type": "item_reference", "id": second["output"][0]["id"]},
            {"role": "user", "content": "x"},
        ],
    )
    assert "three<|im_end|>" in service.prompt
    assert third["previous_response_id"] is None
    # A long item is not multiplied by short references.
    twice = [{"type": "item_reference", "id": second["output"][0]["id"]}] * 2
    assert (await refused(http, input=twice))["param"] == "input[1].id"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": 1}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}]},
            "input",
        ),
        ({"input": [{"role": "user", "content": "x"}] * 10_001}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "middle"}, "truncation"),
        ({"include": ["everything"]}, "include"),
        ({"reasoning": {"effort": "more"}}, "reasoning.effort"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata[...]"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        (
            {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"choice": ["a"]}},
            "structured_outputs",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "no"}}, "tool_choice.name"),
        ({"tools": [{"type": "shell"}]}, "tools[0].type"),
        ({"tools": [{"type": ["function"]}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [custom(type="xml")]}, "tools[0].format"),
        ({"tools": [custom(type="grammar", syntax="lark")]}, "tools[0].format.definition"),
        (
            {"tools": [custom(type="grammar", syntax="peg", definition="a")]},
            "tools[0].format",
        ),
        (
            {"tools": [custom(type="grammar", syntax="lark", definition="a" * 300_000)]},
            "tools",
        ),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{**NAMESPACE, "tools": [NAMESPACE]}]}, "tools[0].tools[0].type"),
        ({"tools": [TOOL | {"name": f"t{i}"} for i in range(1025)]}, "tools"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "tools": [{"type": "function", "name": "no"}],
                }
            },
            "tool_choice.tools[0].name",
        ),
    ],
)
async def test_refused(http: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    assert (await refused(http, **body))["param"] == param


async def test_log_probabilities_need_a_model_that_tells_them(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "x"
    await whole(http, top_logprobs=0)
    assert service.requests[-1].sampling.logprobs is None
