"""More requests than there are places: each is answered, and the books are right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from .process import PATIENCE, Server
from .support import MODEL, idle, poll, scrape

ROUTE = "/v1/completions"
PLACES = 3  # of the narrow server
FLOOD = 20


def body(max_tokens: int, **more: Any) -> dict[str, Any]:
    request = {"model": MODEL, "prompt": [5, 6, 7], "temperature": 0, "max_tokens": max_tokens}
    return request | {"ignore_eos": True} | more


@pytest.fixture
def http(narrow: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=narrow.url, timeout=PATIENCE) as client:
        poll(client, idle)
        yield client


def refused(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "queue_full", None)


async def flood(
    narrow: Server, request: dict[str, Any], count: int = FLOOD
) -> list[httpx.Response]:
    answers: list[httpx.Response] = []
    limits = httpx.Limits(max_connections=FLOOD)
    async with httpx.AsyncClient(base_url=narrow.url, timeout=PATIENCE, limits=limits) as client:

        async def ask() -> None:
            answers.append(await client.post(ROUTE, json=request))

        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(ask)
    return answers


@pytest.mark.anyio
async def test_each_of_a_flood_is_answered(narrow: Server, http: httpx.Client) -> None:
    before = scrape(http)("admission_rejections_total", reason="queue_full")
    answers = await flood(narrow, body(100))
    served = [a for a in answers if a.status_code == 200]
    others = [a for a in answers if a.status_code != 200]
    assert len(answers) == FLOOD
    assert len(served) >= PLACES
    for answer in others:
        refused(answer)
    assert len({a.json()["choices"][0]["text"] for a in served}) == 1
    after = scrape(http)("admission_rejections_total", reason="queue_full")
    assert after - before == len(others) > 0
    (answer,) = await flood(narrow, body(2), count=1)
    assert answer.status_code == 200


@pytest.mark.anyio
async def test_a_full_queue_takes_nothing(narrow: Server, http: httpx.Client) -> None:
    before = scrape(http)("requests_total")
    async with httpx.AsyncClient(base_url=narrow.url, timeout=PATIENCE) as client:

        async def occupy() -> None:
            await client.post(ROUTE, json=body(8000))

        async with anyio.create_task_group() as group:
            for _ in range(PLACES):
                group.start_soon(occupy)
            await full(client)
            for answer in await flood(narrow, body(1)):
                refused(answer)
            refused(await client.post(ROUTE, json=body(1, stream=True)))
            group.cancel_scope.cancel()
    after = poll(http, idle)
    assert after("requests_total") - before == PLACES


async def full(client: httpx.AsyncClient) -> None:
    """Returns when one request runs and two wait."""
    for _ in range(4000):
        numbers = (await client.get("/health")).json()
        if (numbers["running"], numbers["waiting"]) == (1, PLACES - 1):
            return
    raise AssertionError("the queue did not fill")


def test_several_replies_need_several_places(http: httpx.Client) -> None:
    refused(http.post(ROUTE, json=body(1, n=PLACES + 1)))
    assert http.post(ROUTE, json=body(1, n=PLACES)).status_code == 200


def test_refused_requests_give_their_places_back(http: httpx.Client) -> None:
    for _ in range(2 * PLACES):
        assert http.post(ROUTE, json=body(1, prompt=[[5], []])).status_code == 400
        assert http.post(ROUTE, json=body(1, prompt=[100_000])).status_code == 400
    assert http.post(ROUTE, json=body(1, n=PLACES)).status_code == 200
