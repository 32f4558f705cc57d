"""Clients that hang up: the request ends in the engine, and nobody else notices."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from tests.oracle import Oracle

from .process import PATIENCE, Server
from .support import MODEL, Metrics, decisive, idle, ids, poll, scrape, stream, text_of

ROUTE = "/v1/completions"


def body(prompt: list[int], **more: Any) -> dict[str, Any]:
    request = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 1500}
    return request | {"ignore_eos": True} | more


def call(http: httpx.Client, request: dict[str, Any], route: str = ROUTE) -> socket.socket:
    """A connection on which ``request`` was sent; closing it is all that is left to do."""
    url = http.base_url
    content = json.dumps(request).encode()
    connection = socket.create_connection((url.host, url.port), timeout=PATIENCE)
    head = f"POST {route} HTTP/1.1\r\nhost: {url.host}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def read_event(connection: socket.socket) -> None:
    received = b""
    while b"data: " not in received:
        part = connection.recv(4096)
        assert part, received
        received += part


def aborts(before: Metrics, count: int = 1) -> Any:
    """A condition: since ``before`` so many requests were aborted for clients that left."""

    def met(metrics: Metrics) -> bool:
        aborted = metrics("requests_total", finish_reason="abort")
        return (
            aborted - before("requests_total", finish_reason="abort") == count
            and metrics("client_disconnects_total") - before("client_disconnects_total") == count
        )

    return met


@pytest.fixture
def narrow_http(narrow: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=narrow.url, timeout=PATIENCE) as client:
        yield client


def test_hang_up_while_streaming(http: httpx.Client) -> None:
    before = poll(http, idle)
    with call(http, body(ids(20, 1), stream=True)) as connection:
        read_event(connection)
        assert scrape(http)("client_disconnects_total") == before("client_disconnects_total")
    after = poll(http, aborts(before))
    assert poll(http, idle)("requests_total") - before("requests_total") == 1
    assert after("generation_tokens_total") - before("generation_tokens_total") < 1500


@pytest.mark.parametrize("copies", [1, 3])
def test_hang_up_while_waiting_for_the_body(http: httpx.Client, copies: int) -> None:
    before = poll(http, idle)
    with call(http, body(ids(20, 2), n=copies)):
        poll(http, lambda m: m("requests_running") == copies)
    gone = before("client_disconnects_total") + 1
    after = poll(http, lambda m: idle(m) and m("client_disconnects_total") == gone)
    aborted = [m("requests_total", finish_reason="abort") for m in (before, after)]
    assert aborted[1] - aborted[0] == copies


def test_hang_up_during_prefill(narrow_http: httpx.Client) -> None:
    before = poll(narrow_http, idle)
    computed = before("prompt_computed_tokens_total")
    with call(narrow_http, body(ids(6000, 3))):
        poll(narrow_http, lambda m: m("prompt_computed_tokens_total") > computed)
    poll(narrow_http, aborts(before))
    assert poll(narrow_http, idle)("requests_total") - before("requests_total") == 1


def test_hang_up_in_the_queue(narrow_http: httpx.Client) -> None:
    before = poll(narrow_http, idle)
    with call(narrow_http, body(ids(20, 4), stream=True, max_tokens=7000)) as running:
        read_event(running)
        with call(narrow_http, body(ids(20, 5))):
            poll(narrow_http, lambda m: m("requests_waiting") == 1)
        after = poll(narrow_http, aborts(before))
        assert after("requests_running") == 1
        prompts = after("prompt_tokens_total") - before("prompt_tokens_total")
        assert prompts == 20  # the one that waited was never admitted
    poll(narrow_http, aborts(before, 2))
    poll(narrow_http, idle)


def test_whole_body_read_before_the_end_is_no_disconnect(http: httpx.Client) -> None:
    before = poll(http, idle)
    for request in (body(ids(9, 6), max_tokens=3), body(ids(9, 6), max_tokens=3, stream=True)):
        with call(http, request) as connection:
            assert connection.recv(4096)
            if request.get("stream"):
                received = b""
                while b"[DONE]" not in received:
                    received += connection.recv(4096)
    after = poll(http, idle)
    assert after("client_disconnects_total") == before("client_disconnects_total")
    assert after("requests_total", finish_reason="length") == 2 + before(
        "requests_total", finish_reason="length"
    )


@pytest.mark.anyio
async def test_half_of_many_hang_up(http: httpx.Client, server: Server, oracle: Oracle) -> None:
    before = poll(http, idle)
    pairs = [decisive(oracle, 10 + 15 * i, 24, 200 + i) for i in range(6)]
    texts: dict[int, str] = {}

    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:

        async def stays(number: int, prompt: list[int]) -> None:
            response = await client.post(ROUTE, json=body(prompt, max_tokens=24))
            texts[number] = response.json()["choices"][0]["text"]

        async def leaves(prompt: list[int], streams: bool) -> None:
            with anyio.CancelScope() as scope:
                async with client.stream(
                    "POST", ROUTE, json=body(prompt, stream=streams)
                ) as response:
                    async for line in response.aiter_lines():
                        if line.startswith("data: "):
                            scope.cancel()

        async with anyio.create_task_group() as group:
            for number, (prompt, _) in enumerate(pairs):
                group.start_soon(stays, number, prompt)
                group.start_soon(leaves, [*prompt, 9], True)
    assert texts == {i: text_of(oracle, reply.tokens) for i, (_, reply) in enumerate(pairs)}
    poll(http, aborts(before, len(pairs)))
    after = poll(http, idle)
    assert after("requests_total") - before("requests_total") == 2 * len(pairs)


def test_memory_is_given_back(http: httpx.Client) -> None:
    """A hang-up leaves no row and no loan behind: what is not cached is free again."""
    before = poll(http, idle)
    for _ in range(3):
        with call(http, body(ids(300, 7), stream=True)) as connection:
            read_event(connection)
        before = poll(http, aborts(before))
    after = poll(http, idle)
    assert after("kv_cache_bytes", state="owned") == 0
    assert after("kv_cache_bytes", state="lent") == 0
    assert after("kv_cache_bytes", state="cached") > 0
    assert stream(http, ROUTE, body(ids(300, 7), max_tokens=2))
