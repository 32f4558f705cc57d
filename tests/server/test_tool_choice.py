"""Calls that must be made: the real server with the embedded model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI

from engine.tokenizer import Tokenizer
from server.call_rules import call_rules
from server.constraints import wanted
from server.structured import json_answer
from server.tool_choice import ToolChoice, tool_choice

from .process import PATIENCE, Server
from .scripted import tokenizer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Berlin", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather", WEATHER), tool("stop"), tool("ask", {"properties": {}})]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    inner = {"mode": mode, "tools": [named(name) for name in names]}
    return {"type": "allowed_tools", "allowed_tools": inner}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server.ready()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


def chat(http: httpx.Client, **more: Any) -> dict[str, Any]:
    body = {
        "model": "commons-tiny",
        "messages": [{"role": "user", "content": "Hello, how are you?"}],
        "tools": TOOLS,
        "max_tokens": 300,
        "temperature": 0,
    }
    response = http.post("/v1/chat/completions", json=body | more)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def calls(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    assert choice["finish_reason"] == "tool_calls", choice
    assert choice["message"]["content"] is None
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    return [(f["name"], json.loads(f["arguments"])) for f in functions]


def test_any_call(http: httpx.Client) -> None:
    found = calls(chat(http, tool_choice="required"))
    assert found
    assert {name for name, _ in found} <= {"weather", "stop", "ask"}


def test_a_named_call(http: httpx.Client) -> None:
    assert calls(chat(http, tool_choice=named("stop"), parallel_tool_calls=False)) == [("stop", {})]
    ((name, arguments),) = calls(
        chat(http, tool_choice=named("weather"), parallel_tool_calls=False, temperature=1)
    )
    assert name == "weather"
    jsonschema.validate(arguments, WEATHER)


def test_one_of_some(http: httpx.Client) -> None:
    found = calls(chat(http, tool_choice=allowed("required", "stop", "ask")))
    assert {name for name, _ in found} <= {"stop", "ask"}


def test_only_some_are_told_of(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "model": "commons-tiny"}
    body |= {"max_tokens": 1, "tools": TOOLS}
    sizes = []
    for choice in (allowed("auto", "stop"), "auto", "required", named("stop")):
        reply = http.post("/v1/chat/completions", json=body | {"tool_choice": choice})
        sizes.append(reply.raise_for_status().json()["usage"]["prompt_tokens"])
    some, everything, *forced = sizes
    assert some < everything
    # What is forced is in no prompt, so that these begin alike.
    assert forced == [everything] * 2


def test_an_answer_by_a_schema_or_a_call(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for bias, ends in ((-100, "stop"), (100, "tool_calls")):
        marker = tokenizer().added_token("<tool_call>")
        choice = chat(
            http,
            response_format=form,
            logit_bias={str(marker): bias},
            tool_choice="auto",
            parallel_tool_calls=False,
        )
        assert choice["finish_reason"] == ends
        if ends == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_the_sdk_streams_a_forced_call(server: Server) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="commons-tiny",
            messages=[{"role": "user", "content": "Hello"}],
            tools=TOOLS,  # type: ignore[arg-type]
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=False,
            max_tokens=300,
            stream=True,
        )
        names, text, reason = [], "", None
        for chunk in stream:
            reason = chunk.choices[0].finish_reason or reason
            for piece in chunk.choices[0].delta.tool_calls or []:
                assert piece.function is not None
                names += [piece.function.name] if piece.function.name else []
                text += piece.function.arguments or ""
    assert (names, reason) == (["weather"], "tool_calls")
    jsonschema.validate(json.loads(text), WEATHER)


PATCH = 'start: line ~ 2\nline: ("+" | "-") /["é\\\\a-c]{1,3}/ "\\n"'


@pytest.mark.parametrize(
    ("syntax", "definition", "pattern"),
    [("lark", PATCH, r'([+-]["é\\a-c]{1,3}\n){2}'), ("regex", r"^(\d\t){3}$", r"(\d\t){3}")],
)
def test_a_freeform_input_by_a_grammar(
    server: Server, syntax: str, definition: str, pattern: str
) -> None:
    grammar = {"type": "grammar", "syntax": syntax, "definition": definition}
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        response = client.responses.create(
            model="commons-tiny",
            input="Change it.",
            tools=[{"type": "custom", "name": "apply", "format": grammar}],  # type: ignore[list-item]
            tool_choice={"type": "custom", "name": "apply"},
            parallel_tool_calls=False,
            max_output_tokens=200,
            temperature=1,
            extra_body={"seed": 3},
        )
    (call,) = response.output
    assert call.type == "custom_tool_call"
    assert re.fullmatch(pattern, call.input), call.input


@pytest.mark.parametrize(
    "asked",
    [
        {"tool_choice": "sometimes"},
        {"tool_choice": named("other")},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": allowed("auto")},
        {"tool_choice": allowed("never", "stop")},
        {"tool_choice": allowed("auto", "other")},
        {"tool_choice": "required", "tools": None},
    ],
)
def test_refusals(http: httpx.Client, asked: dict[str, Any]) -> None:
    body = {"model": "commons-tiny", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
    response = http.post("/v1/chat/completions", json=body | asked)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"


def test_a_tool_that_cannot_be_enforced(http: httpx.Client) -> None:
    body = {"model": "commons-tiny", "messages": [{"role": "user", "content": "x"}]}
    bad = tool("bad", {"type": "object", "properties": {"x": {"$ref": "http://x/y"}}})
    body |= {"tools": [TOOLS[0], bad], "tool_choice": "required", "max_tokens": 1}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[1]"
    # What is not enforced need not be enforceable.
    assert http.post("/v1/chat/completions", json=body | {"tool_choice": "auto"}).is_success


def test_the_shape_of_responses() -> None:
    flat = {"type": "function", "name": "stop"}
    assert tool_choice(flat, TOOLS) == ToolChoice("required", "stop")
    some = {"type": "allowed_tools", "mode": "required", "tools": [flat]}
    assert tool_choice(some, TOOLS) == ToolChoice("required", None, frozenset({"stop"}))


class Coder(Tokenizer):
    """One whose model writes calls as Qwen3-Coder does."""

    tool_format = "qwen3_coder"  # type: ignore[assignment]


def test_calls_in_tags() -> None:
    coder = Coder(tokenizer()._wrapper)
    properties = {
        "path": {"type": "string"},
        "mode": {"type": "string", "enum": ["r", "w"]},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
    }
    schema = {
        "properties": properties,
        "required": ["path"],
        "$defs": {"line": {"type": "integer"}},
    }
    tools = [tool("read", schema)]
    found = wanted(None, ToolChoice("required"), tools, coder, one=True)
    assert found is not None
    matcher = coder.grammars.compile(found().source).matcher()

    def reads(parameters: str) -> bool:
        text = f"<tool_call>\n<function=read>\n{parameters}</function>\n</tool_call>"
        tokens = list(coder.encode(text))
        return matcher.validate_tokens(tokens) == len(tokens)

    path = "<parameter=path>\na/b <c>\n\nd\n</parameter>\n"
    assert reads(path)
    assert reads(f"{path}<parameter=mode>\nw\n</parameter>\n")
    assert reads(f"{path}<parameter=lines>\n[1, 2]\n</parameter>\n")
    assert not reads("<parameter=mode>\nw\n</parameter>\n")
    assert not reads(f"{path}<parameter=mode>\nx\n</parameter>\n")
    assert not reads(f'{path}<parameter=lines>\n["1"]\n</parameter>\n')


def test_free_answers_need_no_grammar() -> None:
    for mode in ("auto", "none"):
        assert wanted(None, ToolChoice(mode), TOOLS, tokenizer()) is None
    answer = json_answer("it", {"type": "object"})
    assert wanted(answer, ToolChoice("none"), TOOLS, tokenizer()) is not None
    rules = call_rules(tokenizer(), [(0, TOOLS[1]["function"])], one=True)
    assert "*" not in rules
