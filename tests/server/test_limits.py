"""Tenants' limits over HTTP: 429, Retry-After, what headers tell, and the books behind them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from scheduler.limits import OverLimit
from server.errors import ApiError, on_anthropic
from server.rate_limits import duration, over_limit

from .limited import OPERATOR, TENANTS, as_tenant, serve
from .process import PATIENCE, Server
from .support import MODEL, events, idle, poll, scrape

ROUTE = "/v1/completions"
CHAT = "/v1/chat/completions"
DURATION = re.compile(r"(\d+h)?(\d+m)?(\d+(\.\d+)?s|\d+ms)")


@pytest.fixture(scope="module")
def limited(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("limited")
    with serve(folder, tiny, "--max-rows", "2", "--max-queue", "8") as server:
        yield server.ready()


@pytest.fixture
def http(limited: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=limited.url, timeout=PATIENCE, headers=OPERATOR) as client:
        poll(client, idle)
        yield client


def body(max_tokens: int = 2, **more: Any) -> dict[str, Any]:
    request = {"model": MODEL, "prompt": [5, 6, 7], "temperature": 0, "max_tokens": max_tokens}
    return request | {"ignore_eos": True} | more


def ask(http: httpx.Client, tenant: str, route: str = ROUTE, **more: Any) -> httpx.Response:
    return http.post(route, json=body(**more), headers=as_tenant(tenant))


def limited_headers(response: httpx.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {k.removeprefix(prefix): v for k, v in response.headers.items() if k.startswith(prefix)}


def refused(response: httpx.Response) -> int:
    """Checks the shape of a 429; the seconds to wait."""
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    kind = (error["type"], error["code"], error["param"])
    assert kind == ("rate_limit_error", "rate_limit_exceeded", None)
    assert re.fullmatch(r"[0-9]+", response.headers["retry-after"])
    return int(response.headers["retry-after"])


def rejections(http: httpx.Client, limit: str) -> float:
    return scrape(http)("admission_rejections_total", reason=f"tenant_{limit}")


def test_every_reason_and_tenant_is_in_the_first_scrape(http: httpx.Client) -> None:
    metrics = scrape(http)
    for limit in ("requests", "tokens", "concurrent", "queued"):
        assert metrics("admission_rejections_total", reason=f"tenant_{limit}") >= 0
    for tenant in TENANTS:
        assert metrics("tenant_requests_total", tenant=tenant) >= 0


def test_requests_by_the_minute(http: httpx.Client) -> None:
    before = rejections(http, "requests")
    answers = [ask(http, "requests") for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    for i, answer in enumerate(answers[:3]):
        headers = limited_headers(answer)
        assert (headers["limit-requests"], headers["remaining-requests"]) == ("3", str(2 - i))
        assert DURATION.fullmatch(headers["reset-requests"])
        assert "limit-tokens" not in headers
    assert 1 <= refused(answers[3]) <= 20
    assert limited_headers(answers[3])["remaining-requests"] == "0"
    assert rejections(http, "requests") - before == 2
    assert ask(http, "free").status_code == 200


def test_tokens_by_the_minute(http: httpx.Client) -> None:
    before = rejections(http, "tokens")
    long = ask(http, "tokens", max_tokens=700)
    assert long.status_code == 200
    headers = told(http, "tokens")
    assert (headers["limit-tokens"], headers["remaining-tokens"]) == ("600", "0")
    assert DURATION.fullmatch(headers["reset-tokens"])
    answer = ask(http, "tokens")
    assert 1 <= refused(answer) <= 60
    assert "600 tokens a minute" in answer.json()["error"]["message"]
    assert rejections(http, "tokens") - before >= 1


def told(http: httpx.Client, tenant: str) -> dict[str, str]:
    """How the tenant stands, by a request that costs nothing."""
    return limited_headers(ask(http, tenant, prompt=[100_000]))


def test_the_books_agree_with_the_usage_of_the_responses(http: httpx.Client) -> None:
    began = time.monotonic()
    total = ask(http, "exact", max_tokens=100).json()["usage"]["total_tokens"]
    usage = ask(http, "exact", max_tokens=40, n=2).json()["usage"]
    total += usage["total_tokens"] + usage["prompt_tokens"]  # each reply has its prompt
    request = body(max_tokens=100, stream=True, stream_options={"include_usage": True})
    with http.stream("POST", ROUTE, json=request, headers=as_tenant("exact")) as response:
        headers = limited_headers(response)
        assert int(headers["remaining-tokens"]) < 600 - total + 100
        *_, last, _ = events(response.iter_lines())
    total += json.loads(last)["usage"]["total_tokens"]
    left = int(told(http, "exact")["remaining-tokens"])
    refilled = 10 * (time.monotonic() - began)
    assert total > 280
    assert 600 - total <= left <= 600 - total + refilled


@pytest.mark.parametrize("stream", [False, True])
def test_chats_tell_it_too(http: httpx.Client, stream: bool) -> None:
    request = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    answer = http.post(CHAT, json=request | {"stream": stream}, headers=as_tenant("both"))
    assert answer.status_code == 200
    assert limited_headers(answer)["limit-requests"] == "1000"


def test_who_has_no_limits_is_told_of_none(http: httpx.Client) -> None:
    for answer in (
        ask(http, "free"),
        ask(http, "concurrent"),
        http.get("/v1/models", headers=as_tenant("both")),
    ):
        assert answer.status_code == 200
        assert limited_headers(answer) == {}


def test_what_is_refused_costs_nothing(http: httpx.Client) -> None:
    assert ask(http, "refused", max_tokens=1).status_code == 200
    for _ in range(20):
        assert ask(http, "refused", prompt=[100_000]).status_code == 400
        assert ask(http, "refused", prompt=[[5], []]).status_code == 400
        assert ask(http, "refused", prompt=[[5], [6] * 100_000]).status_code == 400
    assert ask(http, "refused", max_tokens=1).status_code == 200


@pytest.mark.anyio
async def test_concurrent_requests(limited: Server, http: httpx.Client) -> None:
    before = rejections(http, "concurrent")
    async with httpx.AsyncClient(base_url=limited.url, timeout=PATIENCE) as client:
        headers = as_tenant("concurrent")
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(hold, client, "concurrent")
            await numbers(client, running=2)
            for _ in range(3):
                assert refused(await client.post(ROUTE, json=body(), headers=headers)) >= 1
            other = await client.post(ROUTE, json=body(n=11), headers=as_tenant("free"))
            assert (other.status_code, other.json()["error"]["code"]) == (503, "queue_full")
            group.cancel_scope.cancel()
    poll(http, idle)
    assert rejections(http, "concurrent") - before == 3
    assert ask(http, "concurrent", n=2).status_code == 200
    never = ask(http, "concurrent", n=3)
    assert never.status_code == 429 and "retry-after" not in never.headers


@pytest.mark.anyio
async def test_queued_requests(limited: Server, http: httpx.Client) -> None:
    before = rejections(http, "queued")
    async with (
        httpx.AsyncClient(base_url=limited.url, timeout=PATIENCE) as client,
        anyio.create_task_group() as group,
    ):
        for _ in range(2):
            group.start_soon(hold, client, "queued")
        await numbers(client, running=2)
        group.start_soon(hold, client, "queued")
        await numbers(client, running=2, waiting=1)
        answer = await client.post(ROUTE, json=body(), headers=as_tenant("queued"))
        assert refused(answer) >= 1
        group.start_soon(hold, client, "free")  # others may still wait
        await numbers(client, running=2, waiting=2)
        group.cancel_scope.cancel()
    poll(http, idle)
    assert rejections(http, "queued") - before == 1
    assert ask(http, "queued", n=3).status_code == 200


async def hold(client: httpx.AsyncClient, tenant: str) -> None:
    """Occupies a place until it is cancelled."""
    await client.post(ROUTE, json=body(8000), headers=as_tenant(tenant))


async def numbers(client: httpx.AsyncClient, running: int, waiting: int = 0) -> None:
    """Returns when so many run and wait."""
    for _ in range(4000):
        health = (await client.get("/health")).json()
        if (health["running"], health["waiting"]) == (running, waiting):
            return
    raise AssertionError("it did not come about")


def test_a_reload_changes_limits_and_leaves_what_was_used(tiny: str, tmp_path: Path) -> None:
    with (
        serve(tmp_path, tiny) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE, headers=OPERATOR) as http,
    ):
        answers = [ask(http, "requests").status_code for _ in range(4)]
        assert answers == [200, 200, 200, 429]
        config = tmp_path / "commons.toml"
        config.write_text(
            config.read_text().replace("requests_per_minute = 3\n", "requests_per_minute = 5\n", 1)
        )
        http.post("/admin/reload").raise_for_status()
        answers = [ask(http, "requests").status_code for _ in range(3)]
        assert answers == [200, 200, 429]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0000001, "0s"),
        (0.02, "20ms"),
        (0.0001, "1ms"),
        (0.9994, "1s"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59.9999, "1m0s"),
        (86.4, "1m26.4s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90_061.5, "25h1m1.5s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_refusals_on_anthropics_routes_are_told_by_cause() -> None:
    own = over_limit(OverLimit("tokens", "Too many.", 1.2))
    assert on_anthropic(own) is own
    assert (own.status, own.type, own.retry_after) == (429, "rate_limit_error", 1.2)
    full = ApiError(503, "Full.", "server_error", "queue_full", None, 1.0)
    told = on_anthropic(full)
    assert (told.status, told.type, told.retry_after) == (529, "overloaded_error", 1.0)
    assert told.message == "Full."
    dead = ApiError(503, "Dead.", "server_error", "engine_dead")
    assert on_anthropic(dead) is dead
