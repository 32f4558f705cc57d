"""On whose behalf a request runs: what its key, its body and its tenant's table make of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from cache.loan import NOBODY
from scheduler.info import ModelConfig, ServiceConfig
from scheduler.request import Request
from scheduler.tenant import DEFAULT, Limits, Tenant
from server.access import Grants

from .access import TENANTS, A, B, bearer, grants, key
from .scripted import Scripted, wired

pytestmark = pytest.mark.anyio

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CONFIG = ServiceConfig(
    "m",
    "m",
    adapters=(("sql", "/a/sql"), ("style", "/a/style")),
    models=(ModelConfig("other", "o", adapters=(("sql2", "/b/sql2"),)),),
)


@pytest.fixture
def service() -> Scripted:
    return Scripted(grants(), CONFIG)


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app, raises=False) as client:
        yield client


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "go"}]} | more


async def sent(service: Scripted, http: httpx.AsyncClient, key: str, **more: Any) -> Request:
    """The request that the engine gets of a chat."""
    answer = await http.post(CHAT, json=chat(**more), headers=bearer(key))
    assert answer.status_code == 200, answer.text
    return service.requests[-1]


async def test_the_key_says_for_whom(http: httpx.AsyncClient, service: Scripted) -> None:
    a = await sent(service, http, A)
    b = await sent(service, http, B, n=2)
    assert (a.tenant, a.domain, a.priority, a.agent) == (TENANTS[0], NOBODY, "interactive", "")
    assert [r.tenant for r in service.requests[1:]] == [TENANTS[1]] * 2
    assert (b.domain, b.priority) == ("lab", "batch")
    text = {"model": "m", "prompt": ["a", "b"], "user": "u", "service_tier": "flex"}
    assert (await http.post(TEXT, json=text, headers=bearer(A))).status_code == 200
    for request in service.requests[-2:]:
        assert (request.tenant, request.priority) == (TENANTS[0], "batch")
        assert request.agent


async def test_without_keys_it_is_the_default_tenant() -> None:
    service = Scripted()
    async with wired(service.app) as http:
        request = await sent(service, http, "anything")
    assert (request.tenant, request.domain) == (DEFAULT, NOBODY)


async def test_agents_are_told_apart(http: httpx.AsyncClient, service: Scripted) -> None:
    async def agent(**more: Any) -> str:
        return (await sent(service, http, A, **more)).agent

    by_user = await agent(user="u")
    assert by_user == await agent(user="u", prompt_cache_key=None, safety_identifier="")
    assert by_user == await agent(safety_identifier="u", user="v")
    assert by_user == await agent(prompt_cache_key="u", safety_identifier="v", user="w")
    others = [await agent(user="v"), await agent(user="x" * 100_000), await agent()]
    assert len({by_user, *others}) == 4
    assert max(map(len, others)) <= 16
    assert "u" not in by_user


async def test_a_salt_narrows_the_domain(http: httpx.AsyncClient, service: Scripted) -> None:
    async def domain(key: str, salt: str | None) -> str:
        return (await sent(service, http, key, cache_salt=salt)).domain

    assert await domain(A, None) == NOBODY
    salted = await domain(A, "s")
    assert salted == await domain(A, "s")
    others = [
        await domain(B, "s"),
        await domain(A, "t"),
        await domain(A, "s" * 256),
        await domain(A, NOBODY),
        await domain(A, salted),
        await domain(B, None),
        await domain(A, "ü \u6f22"),
    ]
    assert len({NOBODY, salted, *others}) == 9
    # No name of the settings can be one of these.
    assert all(":" in name for name in [salted, *others] if name != "lab")


async def test_a_salt_and_a_domain_do_not_run_together() -> None:
    tenants = (Tenant("a", trust_domain="x"), Tenant("b", trust_domain="xy"))
    service = Scripted(grants(*tenants))
    async with wired(service.app) as http:
        first = await sent(service, http, A, cache_salt="yz")
        second = await sent(service, http, B, cache_salt="z")
    assert first.domain != second.domain


@pytest.mark.parametrize("salt", ["", "x" * 257, "a\n", "a\0", "\u200b", 5, ["a"], "\x7f"])
async def test_bad_salt(http: httpx.AsyncClient, service: Scripted, salt: Any) -> None:
    answer = await http.post(CHAT, json=chat(cache_salt=salt), headers=bearer(A))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "cache_salt"
    assert not service.requests


@pytest.mark.parametrize(
    ("tier", "of_a", "of_b"),
    [
        (None, "interactive", "batch"),
        ("auto", "interactive", "batch"),
        ("default", "interactive", "batch"),
        ("flex", "batch", "batch"),
    ],
)
async def test_service_tier(
    http: httpx.AsyncClient, service: Scripted, tier: str | None, of_a: str, of_b: str
) -> None:
    service.says = "x"
    for secret, priority in ((A, of_a), (B, of_b)):
        given = {} if tier is None else {"service_tier": tier}
        answer = await http.post(CHAT, json=chat(**given), headers=bearer(secret))
        assert service.requests[-1].priority == priority
        # As OpenAI does: said where it was asked for, and then what was really used.
        used = None if tier is None else {"interactive": "default", "batch": "flex"}[priority]
        assert answer.json().get("service_tier") == used
        body = chat(**given, stream=True)
        streamed = await http.post(CHAT, json=body, headers=bearer(secret))
        assert (f'"service_tier":"{used}"' in streamed.text) == (tier is not None)
        assert ("service_tier" in streamed.text) == (tier is not None)


@pytest.mark.parametrize("tier", ["priority", "scale", "", "Flex", 1])
async def test_other_service_tiers(http: httpx.AsyncClient, tier: Any) -> None:
    answer = await http.post(CHAT, json=chat(service_tier=tier), headers=bearer(A))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "service_tier"


def restricted(**more: Any) -> Scripted:
    """A server on which the tenant a is restricted, and b is not."""
    return Scripted(grants(Tenant("a", **more), Tenant("b")), CONFIG)


async def visible(service: Scripted, secret: str) -> set[str]:
    """The models that are listed; each can be asked for alone, and no other can."""
    every = {"m", "m:sql", "m:style", "other", "other:sql2"}
    headers = bearer(secret)
    async with wired(service.app) as http:
        listed = {m["id"] for m in (await http.get("/v1/models", headers=headers)).json()["data"]}
        for name in every:
            one = await http.get(f"/v1/models/{name}", headers=headers)
            assert one.status_code == (200 if name in listed else 404)
        for name in every - listed:
            for body in (chat(model=name), chat(model=name.partition(":")[2] or name)):
                answer = await http.post(CHAT, json=body, headers=headers)
                unknown = await http.post(CHAT, json=body | {"model": "zzz"}, headers=headers)
                assert answer.status_code == unknown.status_code == 404
                # Word for word as if there were no such model.
                told = answer.text.replace(repr(body["model"]), "'zzz'")
                assert told == unknown.text
    assert not service.requests
    return listed


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {"m", "m:sql", "m:style", "other", "other:sql2"}),
        ({"models": frozenset({"m"})}, {"m", "m:sql", "m:style"}),
        ({"models": frozenset({"other"})}, {"other", "other:sql2"}),
        ({"models": frozenset()}, set()),
        ({"adapters": frozenset()}, {"m", "other"}),
        ({"adapters": frozenset({"sql"})}, {"m", "m:sql", "other"}),
        ({"adapters": frozenset({"other:sql2"})}, {"m", "other", "other:sql2"}),
        ({"models": frozenset({"m"}), "adapters": frozenset({"sql2"})}, {"m"}),
    ],
)
async def test_what_a_tenant_may_not_use_does_not_exist(
    more: dict[str, Any], expected: set[str]
) -> None:
    service = restricted(**more)
    assert await visible(service, A) == expected
    assert len(await visible(service, B)) == 5


async def test_an_adapter_that_may_not_be_used_is_not_named() -> None:
    service = restricted(adapters=frozenset({"sql"}))
    async with wired(service.app) as http:
        body = chat(adapter="style")
        answer = await http.post(CHAT, json=body, headers=bearer(A))
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "adapter")
        assert error["message"] == "The model 'm' has no adapter 'style'; it has sql."
        for good in (chat(adapter="sql"), chat(model="sql"), chat(model="m:sql")):
            assert (await http.post(CHAT, json=good, headers=bearer(A))).status_code == 200
            assert service.requests[-1].variant.adapter == "sql"


async def limited(limits: Limits, route: str, body: dict[str, Any]) -> Any:
    """The engine's request, or the error that it got instead."""
    service = Scripted(Grants((replace(TENANTS[0], limits=limits),), (key(A, "a"),)))
    async with wired(service.app) as http:
        answer = await http.post(route, json={"model": "m"} | body, headers=bearer(A))
    if answer.status_code == 200:
        return service.requests[-1]
    assert answer.status_code == 400
    assert not service.requests
    assert service.outstanding == 0
    return answer.json()["error"]


GO = {"messages": [{"role": "user", "content": "go"}]}


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (CHAT, GO, "max_tokens"),
        (CHAT, GO, "max_completion_tokens"),
        (TEXT, {"prompt": [5, 6]}, "max_tokens"),
    ],
)
async def test_limit_of_a_reply(route: str, body: dict[str, Any], param: str) -> None:
    limits = Limits(max_tokens=8)
    assert (await limited(limits, route, body)).max_tokens == 8
    assert (await limited(limits, route, body | {param: 8})).max_tokens == 8
    assert (await limited(limits, route, body | {param: 3})).max_tokens == 3
    error = await limited(limits, route, body | {param: 9})
    assert error["param"] == param
    assert error["message"] == f"{param} is 9; your limit is 8 tokens."


async def test_limit_of_the_context() -> None:
    limits = Limits(context=20)
    prompt = {"prompt": list(range(5, 20))}
    assert (await limited(limits, TEXT, prompt)).max_tokens == 5
    assert (await limited(limits, TEXT, prompt | {"max_tokens": 9})).max_tokens == 5
    error = await limited(limits, TEXT, {"prompt": list(range(5, 25))})
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "your limit is a context of 20 tokens" in error["message"]
    # One that is larger than the model's own changes nothing.
    wide = await limited(Limits(context=1 << 20), TEXT, {"prompt": [5] * 4096})
    assert "this model's context is 4096 tokens" in wide["message"]
