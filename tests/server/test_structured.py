"""Answers of a given form: the real server with a model whose weights are random."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.hostile import BAD_SCHEMAS, COSTLY, PLAIN, as_schema
from tests.structured import check

from .process import Server
from .support import MODEL, Metrics, idle, poll, scrape, stream

ROUTE = "/v1/chat/completions"


def body(**more: Any) -> dict[str, Any]:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "go"}], "max_tokens": 200}
    return chat | {"seed": 7} | more


def answer(http: httpx.Client, **more: Any) -> tuple[str, str]:
    """The text and the finish reason."""
    response = http.post(ROUTE, json=body(**more))
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def refused(http: httpx.Client, param: str, **more: Any) -> str:
    content, headers = json.dumps(body(**more)), {"content-type": "application/json"}
    response = http.post(ROUTE, content=content, headers=headers, timeout=5)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert response.elapsed.total_seconds() < 3  # of a second that it may take when all is quiet
    return str(error["message"])


def test_random_schemas(server: Server) -> None:
    verdict = check(server.url, range(5000, 5030))
    assert not verdict.wrong
    assert verdict.finished >= 28


class Person(BaseModel):
    name: str
    married: bool
    friends: list[int]


def test_the_sdk_parses(client: OpenAI) -> None:
    schema = Person.model_json_schema()
    schema["properties"]["name"]["maxLength"] = 4
    schema["properties"]["friends"]["maxItems"] = 2
    schema["properties"]["friends"]["items"] |= {"minimum": 0, "maximum": 9}
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "who?"}],
        max_tokens=1000,
        seed=7,
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": schema}},
    )
    assert reply.choices[0].finish_reason == "stop"
    Person.model_validate_json(reply.choices[0].message.content or "", strict=True)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"guided_regex": r"(ab|cd){2,3}[0-9]/x"}, r"(ab|cd){2,3}[0-9]/x"),
        ({"guided_regex": r"^yes$"}, "yes"),
        ({"guided_choice": ["left", 'ri"ght', "\u00fcber\n"]}, 'left|ri"ght|\u00fcber\n'),
        ({"guided_grammar": 'start: "a" /[xy]{2}/ "b"'}, "a[xy]{2}b"),
        ({"guided_grammar": 'root ::= "a" ("x" | "y") "b"'}, "a[xy]b"),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["one", "two"]}}, "one|two"),
        ({"structured_outputs": {"grammar": 'start: "z"'}}, "z"),
    ],
)
def test_other_forms(http: httpx.Client, asked: dict[str, Any], pattern: str) -> None:
    text, reason = answer(http, **asked)
    assert re.fullmatch(pattern, text), text
    assert reason == "stop"


@pytest.mark.parametrize(
    "asked",
    [
        {"guided_json": PLAIN},
        {"guided_json": json.dumps(PLAIN)},
        {"structured_outputs": {"json": PLAIN}},
        {"response_format": as_schema(PLAIN)},
    ],
)
def test_json_by_any_name(http: httpx.Client, asked: dict[str, Any]) -> None:
    text, reason = answer(http, **asked)
    jsonschema.validate(json.loads(text), PLAIN)
    assert reason == "stop"


def test_text_asks_for_nothing(http: httpx.Client) -> None:
    free, _ = answer(http, max_tokens=20)
    assert answer(http, max_tokens=20, response_format={"type": "text"})[0] == free


def test_json_object_cut_off(http: httpx.Client) -> None:
    text, reason = answer(http, max_tokens=30, response_format={"type": "json_object"})
    assert text.startswith("{")
    assert reason in ("length", "stop")
    if reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_with_everything_else(http: httpx.Client) -> None:
    """Penalties, biases, log-probabilities, several replies, streams."""
    more = {
        "response_format": as_schema(PLAIN),
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {"40": 50, "41": -100},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 3,
        "top_k": 5,
        "top_p": 0.9,
    }
    response = http.post(ROUTE, json=body(**more)).raise_for_status().json()
    for choice in response["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), PLAIN)
        # They are of the model's own distribution, so a forced token may be an unlikely one.
        assert all(len(token["top_logprobs"]) == 2 for token in choice["logprobs"]["content"])
    parts = stream(http, ROUTE, body(**more | {"n": 1}))
    text = "".join(p["choices"][0]["delta"].get("content") or "" for p in parts)
    assert text == response["choices"][0]["message"]["content"]


def test_a_stop_string_ends_it(http: httpx.Client) -> None:
    text, reason = answer(http, response_format=as_schema(PLAIN), stop=['"age"'])
    assert '"age"' not in text
    assert '"name"' in text
    assert reason == "stop"


def test_text_completions(http: httpx.Client) -> None:
    asked = {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 100, "guided_json": PLAIN}
    for choice in http.post("/v1/completions", json=asked).raise_for_status().json()["choices"]:
        jsonschema.validate(json.loads(choice["text"]), PLAIN)


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_bad_schemas(http: httpx.Client, name: str) -> None:
    refused(http, "response_format", response_format=as_schema(BAD_SCHEMAS[name]))


@pytest.mark.parametrize("name", COSTLY)
def test_costly_schemas_are_bounded(http: httpx.Client, name: str) -> None:
    schema = as_schema(COSTLY[name])
    response = http.post(ROUTE, json=body(max_tokens=3, response_format=schema))
    assert response.status_code in (200, 400)
    assert response.elapsed.total_seconds() < 3


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("response_format", {"response_format": {"type": "xml"}}),
        ("response_format", {"response_format": {"type": "json_schema"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {}}}),
        ("guided_json", {"guided_json": "{"}),
        ("guided_json", {"guided_json": "[" * 100_000}),
        ("guided_regex", {"guided_regex": "(["}),
        ("guided_regex", {"guided_regex": "\ud800"}),
        ("guided_regex", {"guided_regex": "(" * 4000 + "a" + ")" * 4000}),
        ("guided_choice", {"guided_choice": []}),
        ("guided_choice", {"guided_choice": ["x"] * 2000}),
        ("guided_grammar", {"guided_grammar": "begin: nothing"}),
        ("guided_grammar", {"guided_grammar": "root ::= ("}),
        ("guided_grammar", {"guided_grammar": "a" * 100_000}),
        ("structured_outputs", {"structured_outputs": {}}),
        ("structured_outputs", {"structured_outputs": {"regex": "a", "choice": ["a"]}}),
        ("structured_outputs", {"structured_outputs": {"structural_tag": "x"}}),
        ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}),
        ("ignore_eos", {"guided_regex": "a+", "ignore_eos": True}),
    ],
)
def test_bad_fields(http: httpx.Client, param: str, asked: dict[str, Any]) -> None:
    refused(http, param, **asked)


def test_grammars_are_counted(http: httpx.Client, first_scrape: str) -> None:
    kinds = ("hit", "miss", "refused")
    count = lambda scrape: [scrape("grammar_cache_total", result=kind) for kind in kinds]
    assert count(Metrics(first_scrape)) == [0, 0, 0]
    before = count(scrape(http))
    for _ in range(2):
        answer(http, guided_choice=["asked for", "twice"])
    refused(http, "guided_regex", guided_regex="([")
    after = scrape(http)
    assert [b - a for a, b in zip(before, count(after), strict=True)] == [1, 1, 1]
    assert after("grammar_compile_seconds_count") == after("grammar_cache_total", result="miss")


def test_nothing_is_left_running(http: httpx.Client) -> None:
    poll(http, idle)
