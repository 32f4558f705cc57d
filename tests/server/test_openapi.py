"""``/openapi.json``: every route is in it, and the server keeps to it, whatever it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.openapi import document
from server.openapi_operations import OPERATIONS, Operation

from .access import routes_of
from .process import Server
from .scripted import Scripted
from .support import MODEL

CASES = 2000
# Bodies of many levels take long to make up. What has no body has little to vary; of the others,
# each gets the same part of what is left.
DEEP, FLAT = 80, 60
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
NEEDED = ("model", "messages", "prompt", "input", "max_tokens", "max_output_tokens")
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
BUDGETS = ("thinking_token_budget", "thinking_budget")
BY_NAME = {operation.name: operation for operation in OPERATIONS}
BUSY = [operation.name for operation in OPERATIONS if operation.body is not None]
QUIET = [operation.name for operation in OPERATIONS if operation.body is None]
NESTED = [name for name in BUSY if name in ("createChatCompletion", "createMessage", "countTokens")]
VARIED = [operation.name for operation in OPERATIONS if operation.parameters]
GENERATING = ["createChatCompletion", "createCompletion", "createMessage", "createResponse"]

sent: Counter[tuple[str, int]] = Counter()  # by operation and status


@pytest.fixture(scope="module")
def short(tiny: str) -> Iterator[Server]:
    """A server whose replies are short where nobody says otherwise."""
    with Server("--model", tiny, "--max-context", "512", "--default-max-tokens", "4") as server:
        yield server.ready()


@pytest.fixture(scope="module")
def described(short: Server) -> Any:
    return schemathesis.openapi.from_url(f"{short.url}/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_every_route_is_described() -> None:
    there = {
        (method, route.path.replace(":path", ""))
        for route in routes_of(Scripted().app)
        for method in route.methods - ({"HEAD"} if "GET" in route.methods else set())
    }
    assert there == {(operation.method, operation.path) for operation in OPERATIONS}


def test_all_references_lead_somewhere() -> None:
    made = document(OPERATIONS)
    schemas = made["components"]["schemas"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].rpartition("/")[2] in schemas
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)

    check(made)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


def tame(case: Case, picks: list[int]) -> None:
    """Keeps a body to what it needs, as far as that can be answered, and to some other fields.

    Among so many fields at random one is nearly always refused, and then the others say nothing.
    """
    body: dict[str, Any] = case.body
    optional = sorted(body.keys() - set(NEEDED))
    chosen = {optional[pick % len(optional)] for pick in picks} if optional else set()
    case.body = {k: v for k, v in body.items() if k in NEEDED or k in chosen}
    if "messages" in body:
        case.body["messages"] = [{"role": "user", "content": str(m)[:40]} for m in [0, *picks]]
    if "prompt" not in body and "messages" not in body:
        case.body["input"] = "go"


def answerable(case: Case) -> Case:
    """The same case, but of a model that there is, and with a reply of few tokens."""
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = MODEL
        for name in (*LENGTHS, *BUDGETS):
            if isinstance(case.body.get(name), int):
                case.body[name] %= 5
    return case


def share(name: str) -> int:
    """How many cases there are to be of an operation."""
    if name in QUIET:
        return FLAT if name in VARIED else 1
    if name in NESTED:
        return DEEP
    varied = [name for name in QUIET if name in VARIED]
    rest = CASES - len(varied) * FLAT - len(NESTED) * DEEP
    return -(-rest // (len(BUSY) - len(NESTED)))


def cases(operation: Any) -> st.SearchStrategy[Case]:
    sound = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if BY_NAME[operation.definition.raw["operationId"]].body is None:
        return sound
    spoilt = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return st.one_of(sound, sound, sound, spoilt)


@pytest.mark.parametrize("name", [*BUSY, *QUIET])
def test_keeps_to_the_document(
    name: str, described: Any, short: Server, session: requests.Session
) -> None:
    operation: Operation = BY_NAME[name]
    shown = described[operation.path][operation.method]

    @settings(
        max_examples=share(name),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(shown), picks=st.none() | st.lists(st.integers(0, 99), max_size=2))
    def check(case: Case, picks: list[int] | None) -> None:
        if name in GENERATING and picks is not None and isinstance(case.body, dict):
            tame(case, picks)
        response = answerable(case).call(base_url=short.url, session=session)
        sent[name, response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    check()


def test_there_were_enough_cases(short: Server) -> None:
    assert sent.total() >= CASES, sent
    for name in GENERATING:
        assert sent[name, 200] >= 5, sent  # or none of it got as far as the engine
    assert httpx.get(f"{short.url}/health").status_code == 200
