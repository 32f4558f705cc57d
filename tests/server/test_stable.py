"""server/stable.py: what is taken out of prompts, and what is not."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from scheduler.metrics import Metrics, ModelMetrics
from server.stable import Stable
from tests.clients.texts import schema, shuffled

HEADER = "x-anthropic-billing-header: cc_version=2.1.330.a1b; cc_entrypoint=cli; cch=00f3a;"


@pytest.fixture
def metrics() -> ModelMetrics:
    return Metrics(CollectorRegistry()).model("m")


@pytest.fixture
def stable(metrics: ModelMetrics) -> Stable:
    return Stable(True, metrics)


def counted(metrics: ModelMetrics, kind: str) -> float:
    of = metrics._of.normalised
    return float(of.labels(model="m", adapter="", draft="", kind=kind)._value.get())


@pytest.mark.parametrize(
    ("blocks", "kept"),
    [
        ([HEADER, "Be kind."], ["Be kind."]),
        ([HEADER.removesuffix(";")], []),
        ([f"{HEADER}\nBe kind."], ["Be kind."]),
        ([f"{HEADER}\n{HEADER}\n"], [f"{HEADER}\n"]),
    ],
)
def test_billing_header_goes(
    stable: Stable, metrics: ModelMetrics, blocks: list[str], kept: list[str]
) -> None:
    assert stable.system(blocks) == kept
    assert counted(metrics, "billing_header") == 1


@pytest.mark.parametrize(
    "block",
    [
        f" {HEADER}",
        f"Look:\n{HEADER}",
        HEADER.replace("x-a", "X-A"),
        "x-anthropic-billing-header: what is this?",
        "x-anthropic-billing-header:",
        "x-anthropic-billing-headers: a=b;",
        "x-anthropic-something: a=b;",
        f"{HEADER} Be kind.",
        "",
    ],
)
def test_other_text_stays(stable: Stable, metrics: ModelMetrics, block: str) -> None:
    assert stable.system([block, "x"]) == [block, "x"]
    assert counted(metrics, "billing_header") == 0


@pytest.mark.parametrize(
    "text", ["a=;" * 100_000 + "!", "a= " * 100_000, "a=b;" + " " * 300_000 + "!"]
)
def test_hostile_header_takes_no_time(stable: Stable, text: str) -> None:
    began = time.thread_time()
    stable.system([f"x-anthropic-billing-header: {text}"])
    assert time.thread_time() - began < 1


def tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "x", "parameters": parameters}}


def test_key_order_does_not_matter(stable: Stable, metrics: ModelMetrics) -> None:
    rng = random.Random(1)
    texts = {json.dumps(stable.tools([tool(shuffled(schema(1), rng))])) for _ in range(20)}
    assert len(texts) == 1
    (text,) = texts
    assert json.loads(text) == [tool(schema(1))]
    assert counted(metrics, "tool_schema") == 20


def test_required_properties_come_first_and_in_their_order(stable: Stable) -> None:
    of = {name: {"type": "string"} for name in ("old", "a", "new", "b")}
    (made,) = stable.tools([tool({"required": ["old", "new"], "properties": of})])
    parameters = made["function"]["parameters"]
    assert list(parameters) == ["properties", "required"]
    assert list(parameters["properties"]) == ["old", "new", "a", "b"]


def test_a_canonical_tool_is_not_counted(stable: Stable, metrics: ModelMetrics) -> None:
    once = stable.tools([tool(schema(1))])
    before = counted(metrics, "tool_schema")
    assert json.dumps(stable.tools(once)) == json.dumps(once)
    assert counted(metrics, "tool_schema") == before


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"properties": 1, "required": 2},
        {"properties": {"a": True, "b": 3}, "required": ["c", 4, "a", "a", {}]},
        {"properties": {"properties": {"properties": {"required": {"x": 1}}}}},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "enum": [{"b": 1, "a": 2}]},
    ],
)
def test_whatever_a_schema_is_its_meaning_stays(stable: Stable, parameters: Any) -> None:
    assert stable.tools([tool(parameters)]) == [tool(parameters)]


def test_deep_schemas_are_left_at_their_depth(stable: Stable) -> None:
    deep: Any = {"b": 1, "a": 2}
    for _ in range(400):
        deep = {"items": deep}
    assert len(stable.tools([tool(deep)])) == 1


def test_turned_off(metrics: ModelMetrics) -> None:
    off = Stable(False, metrics)
    given = [tool({"required": [], "properties": {}})]
    assert off.system([HEADER]) == [HEADER]
    assert json.dumps(off.tools(given)) == json.dumps(given)
    assert counted(metrics, "billing_header") == counted(metrics, "tool_schema") == 0
