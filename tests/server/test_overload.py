"""More requests than there are places: each is answered, and the books are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import aiohttp
import anyio
import httpx
import pytest

from .limited import OPERATOR, as_tenant, serve
from .process import PATIENCE, Server
from .support import Metrics, completion, idle, poll, scrape

ROUTE = "/v1/completions"
PLACES = 3  # of the narrow server
FLOOD = 20
CROWD = 500
ROWS, QUEUE = 4, 64  # of the server that the crowd meets
TENANTS = ("free", "both", "concurrent", "queued")
CROWDS = 3
GROWTH = 16 << 20  # bytes that a process may have more after a crowd than after one before it


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
    server: Server,
    request: dict[str, Any],
    count: int = FLOOD,
    tenants: Sequence[str] = (),
    full: anyio.Event | None = None,
) -> list[httpx.Response]:
    """The answers to ``count`` requests at once, which the tenants send in turn.

    ``full`` is set when one has been answered with 503. They are sent with aiohttp: httpx looks
    through all its connections for each request.
    """
    answers: list[httpx.Response] = []
    wait = aiohttp.ClientTimeout(PATIENCE)
    places = aiohttp.TCPConnector(limit=count)
    async with aiohttp.ClientSession(server.url, timeout=wait, connector=places) as client:

        async def ask(headers: dict[str, str]) -> None:
            async with client.post(ROUTE, json=request, headers=headers) as reply:
                found = list(reply.headers.items()), await reply.read()
            answers.append(httpx.Response(reply.status, headers=found[0], content=found[1]))
            if full is not None and answers[-1].status_code == 503:
                full.set()

        async with anyio.create_task_group() as group:
            for i in range(count):
                group.start_soon(ask, as_tenant(tenants[i % len(tenants)]) if tenants else {})
    return answers


@pytest.mark.anyio
async def test_each_of_a_flood_is_answered(narrow: Server, http: httpx.Client) -> None:
    before = scrape(http)("admission_rejections_total", reason="queue_full")
    answers = await flood(narrow, completion(100))
    served = [a for a in answers if a.status_code == 200]
    others = [a for a in answers if a.status_code != 200]
    assert len(answers) == FLOOD
    assert len(served) >= PLACES
    for answer in others:
        refused(answer)
    assert len({a.json()["choices"][0]["text"] for a in served}) == 1
    after = scrape(http)("admission_rejections_total", reason="queue_full")
    assert after - before == len(others) > 0
    (answer,) = await flood(narrow, completion(2), count=1)
    assert answer.status_code == 200


@pytest.mark.anyio
async def test_a_full_queue_takes_nothing(narrow: Server, http: httpx.Client) -> None:
    before = scrape(http)("requests_total")
    async with httpx.AsyncClient(base_url=narrow.url, timeout=PATIENCE) as client:

        async def occupy() -> None:
            await client.post(ROUTE, json=completion(8000))

        async with anyio.create_task_group() as group:
            for _ in range(PLACES):
                group.start_soon(occupy)
            await full(client)
            for answer in await flood(narrow, completion(1)):
                refused(answer)
            refused(await client.post(ROUTE, json=completion(1, stream=True)))
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
    refused(http.post(ROUTE, json=completion(1, n=PLACES + 1)))
    assert http.post(ROUTE, json=completion(1, n=PLACES)).status_code == 200


def test_refused_requests_give_their_places_back(http: httpx.Client) -> None:
    for _ in range(2 * PLACES):
        assert http.post(ROUTE, json=completion(1, prompt=[[5], []])).status_code == 400
        assert http.post(ROUTE, json=completion(1, prompt=[100_000])).status_code == 400
    assert http.post(ROUTE, json=completion(1, n=PLACES)).status_code == 200


@pytest.fixture(scope="module")
def crowded(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a queue of 64 and some tenants, of which two have limits."""
    size = ("--max-rows", str(ROWS), "--max-queue", str(QUEUE))
    with serve(tmp_path_factory.mktemp("crowded"), tiny, *size) as server:
        yield server.ready()


def memory(metrics: Metrics) -> dict[str, float]:
    """Bytes that requests hold, and all that the KV memory has."""
    states = {s: metrics("kv_cache_bytes", state=s) for s in ("lent", "owned", "cached", "free")}
    return {"lent": states["lent"], "owned": states["owned"], "all": sum(states.values())}


def resident(metrics: Metrics) -> float:
    """Bytes of the process without the KV that it keeps: how long those replies grew that held
    the rows is a matter of time."""
    process = next(s for s in metrics.samples if s.name == "process_resident_memory_bytes")
    return process.value - metrics("kv_cache_bytes", state="cached")


async def hold(client: httpx.AsyncClient) -> None:
    await client.post(ROUTE, json=completion(8000), headers=as_tenant("free"))


async def crowd(server: Server) -> list[httpx.Response]:
    """The answers to a crowd that finds all rows taken until the queue is full."""
    full = anyio.Event()
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client,
        anyio.create_task_group() as holders,
    ):
        for _ in range(ROWS):
            holders.start_soon(hold, client)
        with anyio.fail_after(PATIENCE):
            while (await client.get("/health")).json()["running"] < ROWS:
                pass

        async def let_go() -> None:
            await full.wait()
            holders.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(let_go)
            with anyio.CancelScope(shield=True):
                answers = await flood(server, completion(8), CROWD, TENANTS, full)
                full.set()  # if it never was, the answers tell
    return answers


def check_crowd(answers: list[httpx.Response]) -> None:
    codes = Counter(
        "served" if a.status_code == 200 else a.json()["error"]["code"] for a in answers
    )
    assert codes.total() == CROWD
    assert codes.keys() == {"served", "queue_full", "rate_limit_exceeded"}
    assert codes["served"] >= QUEUE
    for answer in answers:
        if answer.status_code != 200:
            assert answer.status_code in (429, 503)
            assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.anyio
async def test_a_crowd_is_answered_and_leaves_nothing_behind(crowded: Server) -> None:
    options: dict[str, Any] = {"timeout": PATIENCE, "headers": OPERATOR}
    async with httpx.AsyncClient(base_url=crowded.url, **options) as http:
        before = memory(await settled(http))
        sizes = []
        for _ in range(CROWDS):
            check_crowd(await crowd(crowded))
            after = await settled(http)
            assert memory(after) == before
            sizes.append(resident(after))
        # What is lost with each crowd shows after all of them; a page more or less does not.
        assert min(b - a for a, b in pairwise(sizes)) < GROWTH, sizes
        # Every place is free again, the tenants' own too.
        for tenant, most in (("free", ROWS + QUEUE), ("concurrent", 2), ("queued", ROWS + 1)):
            answer = await http.post(ROUTE, json=completion(1, n=most), headers=as_tenant(tenant))
            assert answer.status_code == 200


async def settled(http: httpx.AsyncClient) -> Metrics:
    """The first scrape in which the engine has nothing to do."""
    for _ in range(4000):
        metrics = Metrics((await http.get("/metrics")).text)
        if idle(metrics):
            return metrics
    raise AssertionError("it did not come about")
