"""What is wrong gets a 4xx in the OpenAI shape that names the field, and reaches no engine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.models import VOCABULARY

from .support import CONTEXT, MODEL, idle, ids, poll, scrape

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
UNSUPPORTED = "unsupported"


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, "max_tokens": 2} | more


def text(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 2} | more


def said(role: Any = "user", content: Any = "x", **more: Any) -> dict[str, Any]:
    return chat(messages=[{"role": role, "content": content} | more])


def total(http: httpx.Client) -> float:
    """Requests that the engine ever saw; it must have nothing to do."""
    return poll(http, idle)("requests_total")


@pytest.fixture(autouse=True)
def _nothing_reaches_the_engine(http: httpx.Client) -> Iterator[None]:
    before = total(http)
    yield
    assert total(http) == before
    assert http.post(TEXT, json=text()).status_code == 200


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of a response, whose shape is checked."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    return error


TOOLS = [{"type": "function", "function": {"name": "f"}}]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


CHATS: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    ("no messages", chat(messages=[]), "messages", None),
    ("messages missing", {"model": MODEL}, "messages", None),
    ("model missing", {"messages": HELLO}, "model", None),
    ("messages null", chat(messages=None), "messages", None),
    ("messages a text", chat(messages="hi"), "messages", None),
    ("message a text", chat(messages=["hi"]), "messages[0]", None),
    ("role missing", chat(messages=[{"content": "x"}]), "messages[0].role", None),
    ("role unknown", said(role="robot"), "messages[0].role", None),
    ("role a number", said(role=5), "messages[0].role", None),
    ("content missing", chat(messages=[{"role": "user"}]), "messages[0].content", None),
    ("content null", said(content=None), "messages[0].content", None),
    ("content a number", said(content=5), "messages[0].content", None),
    (
        "image",
        said(content=[{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]),
        "messages[0].content[0].type",
        None,
    ),
    (
        "audio part",
        said(content=[{"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {}}]),
        "messages[0].content[1].type",
        None,
    ),
    ("too long", said(content="x" * 4 * CONTEXT), "messages", "context_length_exceeded"),
    ("n zero", chat(n=0), "n", None),
    ("n huge", chat(n=10**9), "n", None),
    ("n beyond 64 bits", chat(n=10**30), "n", None),
    ("n a text", chat(n="2"), "n", None),
    ("max_tokens zero", chat(max_tokens=0), "max_tokens", None),
    ("max_tokens negative", chat(max_tokens=-1), "max_tokens", None),
    ("max_tokens a fraction", chat(max_tokens=1.5), "max_tokens", None),
    ("max_completion_tokens", chat(max_completion_tokens=0), "max_completion_tokens", None),
    ("temperature negative", chat(temperature=-0.1), "temperature", None),
    ("temperature huge", chat(temperature=1e300), "temperature", None),
    ("top_p", chat(top_p=1.1), "top_p", None),
    ("top_k", chat(top_k=-2), "top_k", None),
    ("min_p", chat(min_p=2), "min_p", None),
    ("presence_penalty", chat(presence_penalty=3), "presence_penalty", None),
    ("frequency_penalty", chat(frequency_penalty=-3), "frequency_penalty", None),
    ("repetition_penalty", chat(repetition_penalty=0), "repetition_penalty", None),
    ("repetition_penalty tiny", chat(repetition_penalty=1e-300), "repetition_penalty", None),
    ("seed beyond 64 bits", chat(seed=1 << 64), "seed", None),
    ("seed far below", chat(seed=-(1 << 63) - 1), "seed", None),
    ("seed a text", chat(seed="1"), "seed", None),
    ("stop empty", chat(stop=""), "stop", None),
    ("stop with an empty one", chat(stop=["a", ""]), "stop", None),
    ("stop too much", chat(stop=["a" * 1024] * 5), "stop", None),
    ("stop too many", chat(stop=["a"] * 65), "stop", None),
    ("stop too long", chat(stop="a" * 1025), "stop", None),
    ("stop a number", chat(stop=5), "stop", None),
    ("stop ids beyond", chat(stop_token_ids=[VOCABULARY]), "stop_token_ids", None),
    ("stop ids below", chat(stop_token_ids=[-1]), "stop_token_ids", None),
    ("stop ids huge", chat(stop_token_ids=[1 << 70]), "stop_token_ids", None),
    ("bias beyond", chat(logit_bias={str(VOCABULARY): 1}), "logit_bias", None),
    ("bias below", chat(logit_bias={"-1": 1}), "logit_bias", None),
    ("bias huge id", chat(logit_bias={"9" * 500: 1}), "logit_bias", None),
    ("bias id after zeros", chat(logit_bias={"0" * 30 + "9999": 1}), "logit_bias", None),
    ("bias no id", chat(logit_bias={"x": 1}), "logit_bias", None),
    ("bias other digits", chat(logit_bias={"\u0665": 1}), "logit_bias", None),
    ("bias out of range", chat(logit_bias={"5": 101}), "logit_bias", None),
    ("bias a list", chat(logit_bias=[1]), "logit_bias", None),
    ("top_logprobs many", chat(logprobs=True, top_logprobs=21), "top_logprobs", None),
    ("top_logprobs below", chat(logprobs=True, top_logprobs=-1), "top_logprobs", None),
    ("top_logprobs alone", chat(top_logprobs=2), "top_logprobs", None),
    ("logprobs a number", chat(logprobs=3), "logprobs", None),
    ("best_of", chat(best_of=2), "best_of", UNSUPPORTED),
    ("audio", chat(audio={"voice": "a", "format": "wav"}), "audio", UNSUPPORTED),
    ("modalities", chat(modalities=["text", "audio"]), "modalities", UNSUPPORTED),
    ("prediction", chat(prediction={"type": "content"}), "prediction.content", None),
    ("prediction kind", chat(prediction={"type": "x", "content": ""}), "prediction.type", None),
    (
        "call without result",
        chat(
            messages=[
                {"role": "user", "content": "go"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
            ]
        ),
        "messages",
        None,
    ),
    ("verbosity", chat(verbosity="loud"), "verbosity", None),
    ("metadata", chat(metadata={"a": 1}), "metadata[...]", None),
    ("metadata key", chat(metadata={"a" * 65: "x"}), "metadata", None),
    ("metadata value", chat(metadata={"a": "x" * 513}), "metadata", None),
    ("metadata many", chat(metadata={str(i): "" for i in range(17)}), "metadata", None),
    ("store", chat(store="yes"), "store", None),
    ("continue", chat(continue_final_message=True), "continue_final_message", None),
    (
        "continue and begin",
        said("assistant") | {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        None,
    ),
    (
        "to think and not",
        chat(enable_thinking=True, reasoning_effort="none"),
        "enable_thinking",
        None,
    ),
    (
        "thinking no switch",
        chat(chat_template_kwargs={"enable_thinking": "yes"}),
        "chat_template_kwargs",
        None,
    ),
    ("budget", chat(thinking_budget=-2), "thinking_budget", None),
    ("budget no number", chat(thinking_token_budget="many"), "thinking_token_budget", None),
    ("huge budget", chat(thinking_token_budget=1 << 31), "thinking_token_budget", None),
    (
        "budget of a template",
        chat(chat_template_kwargs={"thinking_budget": 0.5}),
        "chat_template_kwargs",
        None,
    ),
    (
        "two budgets",
        chat(thinking_budget=5, thinking_token_budget=6),
        "thinking_budget",
        None,
    ),
    ("functions", chat(functions=[{"name": "f"}]), "functions", UNSUPPORTED),
    ("draft model", chat(draft_model=3), "draft_model", None),
    ("tool_choice", chat(tool_choice="required"), "tool_choice", None),
    ("tool_choice of no use", chat(tool_choice={"type": "mcp"}), "tool_choice", None),
    ("tool_choice unknown", chat(tools=TOOLS, tool_choice=named("g")), "tool_choice", None),
    ("tool_choice forced", chat(tools=TOOLS, tool_choice=named("f")), "tool_choice", UNSUPPORTED),
    ("tool type", chat(tools=[{"type": "web", "function": {"name": "f"}}]), "tools[0]", None),
    ("tool nameless", chat(tools=[{"function": {}}]), "tools[0].function.name", None),
    ("effort", chat(reasoning_effort="heroic"), "reasoning_effort", None),
    ("template", chat(chat_template_kwargs={"evil": 1}), "chat_template_kwargs", None),
    ("stream a text", chat(stream="yes"), "stream", None),
]
TEXTS: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    ("empty text", text(prompt=""), "prompt", None),
    ("empty list", text(prompt=[]), "prompt", None),
    ("empty ids", text(prompt=[[]]), "prompt", None),
    ("an empty one", text(prompt=["x", ""]), "prompt", None),
    ("id beyond", text(prompt=[1, VOCABULARY]), "prompt", None),
    ("id below", text(prompt=[[1, 2], [-1]]), "prompt", None),
    ("id huge", text(prompt=[1 << 70]), "prompt", None),
    ("id true", text(prompt=[True]), "prompt[0]", None),
    ("id a fraction", text(prompt=[1.5]), "prompt[0]", None),
    ("mixed", text(prompt=["x", 5]), "prompt", None),
    ("mixed lists", text(prompt=["x", [5]]), "prompt", None),
    ("null", text(prompt=None), "prompt", None),
    ("missing", {"model": MODEL}, "prompt", None),
    ("too long", text(prompt=ids(CONTEXT, 1)), "prompt", "context_length_exceeded"),
    (
        "one of them too long",
        text(prompt=[[5], ids(CONTEXT, 1)]),
        "prompt",
        "context_length_exceeded",
    ),
    ("too many", text(prompt=[[5]] * 129), "n", None),
    ("too many together", text(prompt=[[5]] * 2, n=65), "n", None),
    ("logprobs", text(logprobs=21), "logprobs", None),
    ("echo", text(echo=True, logprobs=1), "echo", UNSUPPORTED),
    ("echo alone", text(echo=True, max_tokens=0), "max_tokens", None),
    ("suffix", text(suffix="end"), "suffix", UNSUPPORTED),
    ("embeddings", text(prompt_embeds="AAAA"), "prompt_embeds", UNSUPPORTED),
]


@pytest.mark.parametrize(
    ("route", "body", "param", "code"),
    [
        pytest.param(route, body, param, code, id=f"{kind}: {name}")
        for route, kind, cases in ((CHAT, "chat", CHATS), (TEXT, "text", TEXTS))
        for name, body, param, code in cases
    ],
)
def test_bad_field_is_named(
    http: httpx.Client, route: str, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    for stream in (False, True):
        error = refused(http.post(route, json={"stream": stream} | body))
        assert (error["param"], error["code"]) == (param, code)


DEEP = 100_000
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "two values": b"{} {}",
    "no UTF-8": b'{"model": "\xff"}',
    "a list": b"[]",
    "a text": b'"hello"',
    "null": b"null",
    "a number": b"5",
    "NaN": json.dumps(chat(temperature=float("nan"))).encode(),
    "Infinity": json.dumps(chat(temperature=float("inf"))).encode(),
    "-Infinity": json.dumps(chat(temperature=float("-inf"))).encode(),
    "infinite": json.dumps(chat()).encode().replace(b'"max_tokens": 2', b'"temperature": 1e999'),
    "lone surrogate": json.dumps(said(content="\ud800")).encode(),
    "lone surrogate in a name": json.dumps(chat(user="\udfff")).encode(),
    "lone surrogate raw": b'{"model": "\xed\xa0\x80"}',
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep field": json.dumps(chat())[:-1].encode() + b', "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "many lists": json.dumps(chat())[:-1].encode() + b', "x": [' + b"[]," * DEEP + b"[]]}",
    "many objects": json.dumps(chat())[:-1].encode() + b', "tools": [' + b"{}," * DEEP + b"{}]}",
    "a long list": b"[" + b"[]," * DEEP + b"[]]",
    "deep tool": json.dumps(chat())[:-1].encode()
    + b', "tools": [{"function": {"name": "f", "parameters": '
    + b'{"a":' * DEEP
    + b"1"
    + b"}" * DEEP
    + b"}}]}",
}


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bad_body_is_refused(http: httpx.Client, route: str, body: bytes) -> None:
    refused(http.post(route, content=body, headers={"content-type": "application/json"}))


FIELDS: list[tuple[str, str | None]] = [
    ("lone surrogate", "messages"),
    ("lone surrogate in a name", "user"),
    ("lone surrogate raw", "model"),
    ("no UTF-8", "model"),
    ("deep objects", "a"),
    ("deep lists", None),
    ("deep field", "x"),
    ("many lists", "x"),
    ("many objects", "tools"),
    ("a long list", None),
    ("deep tool", "tools"),
]


@pytest.mark.parametrize(("name", "param"), FIELDS)
def test_field_of_a_body_that_cannot_be_read_is_named(
    http: httpx.Client, name: str, param: str | None
) -> None:
    headers = {"content-type": "application/json"}
    error = refused(http.post(CHAT, content=BODIES[name], headers=headers))
    assert error["param"] == param


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_content_type_must_be_json(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    refused(http.post(CHAT, content=json.dumps(chat()).encode(), headers=headers), 415)


def test_compressed_body(http: httpx.Client) -> None:
    content = gzip.compress(json.dumps(chat()).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused(http.post(CHAT, content=content, headers=headers), 415)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_body_is_refused(http: httpx.Client, chunked: bool) -> None:
    part, count = b" " * (1 << 20), 65

    def parts() -> Iterator[bytes]:
        for _ in range(count):
            yield part

    content = parts() if chunked else part * count
    response = http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert refused(response, 413)["code"] == "body_too_large"


@pytest.mark.parametrize("name", ["gpt-4", "", MODEL + "/", MODEL.upper(), "x" * 5000])
def test_unknown_model(http: httpx.Client, name: str) -> None:
    for route, body in ((CHAT, chat(model=name)), (TEXT, text(model=name))):
        error = refused(http.post(route, json=body), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert len(error["message"]) < 500


def test_brackets_in_texts_are_no_lists(http: httpx.Client) -> None:
    content = json.dumps(said(content="[{" * DEEP + '"\\"'), ensure_ascii=False).encode()
    error = refused(http.post(CHAT, content=content, headers={"content-type": "application/json"}))
    assert error["code"] == "context_length_exceeded"


def test_harmless_values_of_unsupported_fields_are_taken(http: httpx.Client) -> None:
    before = scrape(http)
    refused(http.post(CHAT, json=chat(response_format={"type": "text"}, functions=[], n=0)))
    assert scrape(http)("requests_total") == before("requests_total")
