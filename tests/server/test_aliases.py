"""Other names for models: what they mean, who may use them, how they are read and reread."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from scheduler.aliases import Aliases
from scheduler.info import ServiceConfig
from scheduler.tenant import Tenant
from server.aliases import MOST_ALIASES, parse_aliases
from server.settings_file import ConfigError

from .access import A, grants
from .process import PATIENCE, Server
from .scripted import Scripted, wired

OFFER = {"qwen3": ["sql", "law"], "coder": []}


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("exact", "1"),
        ("exactly", "2"),
        ("exact-and-longer", "3"),
        ("gpt-4", "4"),
        ("gpt-5", None),
        ("Exact", None),
        ("", None),
    ],
)
def test_exact_names_go_before_the_longest_pattern(name: str, target: str | None) -> None:
    pairs = [("ex*", "0"), ("exact*", "2"), ("exact", "1"), ("exact-*", "3"), ("gpt-[34]", "4")]
    for order in (pairs, pairs[::-1]):
        aliases = Aliases(order)
        assert aliases.target(name) == target
        assert list(aliases) == [("exact", "1")]


def test_targets_are_models_and_adapters() -> None:
    table = {"a": "qwen3", "b*": "qwen3:sql", "c": "law"}
    assert parse_aliases(table, OFFER) == tuple(table.items())
    assert parse_aliases({}, OFFER) == ()


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"a": "nobody"}, ("aliases", "a")),
        ({"a": "coder:sql"}, ("aliases", "a")),
        ({"a": 5}, ("aliases", "a")),
        ({"b": "qwen3", "a": "b"}, ("aliases", "a")),
        ({"qwen3": "coder"}, ("aliases", "qwen3")),
        ({"": "coder"}, ("aliases", "")),
        ({"x" * 300: "coder"}, ("aliases", "x" * 300)),
        ({str(i): "coder" for i in range(MOST_ALIASES + 1)}, ("aliases",)),
        (["a"], ("aliases",)),
    ],
)
def test_what_cannot_be_an_alias_is_refused(table: Any, place: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_aliases(table, OFFER)
    assert refused.value.place == place


ALIASES = (("gpt-4o", "m"), ("claude-*", "m:a"), ("other", "m:b"))


def scripted(tenant: Tenant) -> Scripted:
    config = ServiceConfig("m", "m", adapters=(("a", "/a"), ("b", "/b")), aliases=ALIASES)
    return Scripted(grants(tenant), config)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    service = scripted(Tenant("a", adapters=frozenset(["a"])))
    service.says = "ok"
    async with wired(service.app, key=A) as client:
        yield client


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["gpt-4o", "claude-sonnet-4"])
async def test_reply_bears_the_name_that_was_asked_for(
    http: httpx.AsyncClient, model: str, stream: bool
) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    for route, more in (
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/messages", chat | {"max_tokens": 8}),
        ("/v1/responses", {"input": "x"}),
    ):
        response = await http.post(route, json={"model": model, "stream": stream} | more)
        assert response.status_code == 200, response.text
        lines = [line for line in response.text.split("\n") if not line.startswith("event: ")]
        first = json.loads(lines[0].removeprefix("data: "))
        told = first.get("message") or first.get("response") or first
        assert told["model"] == model
    counted = await http.post("/v1/messages/count_tokens", json={"model": model} | chat)
    assert counted.json()["input_tokens"] > 0


@pytest.mark.anyio
async def test_alias_of_what_a_tenant_may_not_use_is_not_there(http: httpx.AsyncClient) -> None:
    listed = [m["id"] for m in (await http.get("/v1/models")).json()["data"]]
    assert listed == ["m", "m:a", "gpt-4o"]
    assert (await http.get("/v1/models/other")).status_code == 404
    refused = await http.post("/v1/completions", json={"model": "other", "prompt": "x"})
    assert refused.status_code == 404
    assert "'other'" in refused.json()["error"]["message"]


@pytest.mark.anyio
async def test_alias_as_a_model(http: httpx.AsyncClient) -> None:
    for name, target in (("gpt-4o", "m"), ("claude-x", "m:a")):
        found = (await http.get(f"/v1/models/{name}")).json()
        assert (found["id"], found["parent"]) == (name, target)
    assert (await http.get("/v1/models/a")).json()["id"] == "m:a"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "commons.toml"
    path.write_text('[aliases]\n"gpt-*" = "tiny-qwen3"\n')
    return path


@pytest.fixture
def running(settings: Path, tiny: str) -> Iterator[Server]:
    with Server("--model", tiny, "--config", str(settings)) as server:
        yield server.ready()


def test_aliases_are_reloaded_whole_or_not_at_all(running: Server, settings: Path) -> None:
    with (
        OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
        httpx.Client(base_url=running.url, timeout=PATIENCE) as http,
    ):
        ask: dict[str, Any] = {"prompt": "x", "max_tokens": 1}
        assert client.completions.create(model="gpt-4", **ask).model == "gpt-4"
        settings.write_text('[aliases]\n"claude" = "nobody"\n')
        refused = http.post("/admin/reload")
        assert refused.status_code == 400
        assert "commons.toml:2: [aliases]" in refused.json()["error"]["message"]
        assert client.completions.create(model="gpt-4", **ask).model == "gpt-4"
        settings.write_text('[aliases]\n"claude" = "tiny-qwen3"\n')
        assert http.post("/admin/reload").json()["restart"] == []
        assert client.completions.create(model="claude", **ask).model == "claude"
        assert client.models.retrieve("claude").id == "claude"
        gone = http.post("/v1/completions", json=ask | {"model": "gpt-4"})
        assert gone.status_code == 404
