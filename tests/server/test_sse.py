"""Streams of events: order, silence, slow readers, hang-ups, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from server import sse
from server.clients import ClientGone, watched, while_connected
from server.sse import COMMENT, Emit, EventStream, KeepAlive, Producer, event

from .process import PATIENCE

pytestmark = pytest.mark.anyio


class Client:
    """The other end: what was sent, and when it hangs up or stops reading."""

    def __init__(self, keep_alive: KeepAlive = COMMENT) -> None:
        self.messages: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.on_body: Callable[[bytes], None] = lambda _: None
        self.stream = EventStream(self.receive, self.send, keep_alive)

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self.reads.wait()
            self.on_body(message["body"])
        self.messages.append(message)

    async def run(self, producers: list[Producer], last: str = "z") -> None:
        with anyio.fail_after(PATIENCE):  # a fault must not hang the tests
            await self.stream.run(producers, last.encode)

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.messages).decode()


def says(*texts: str) -> Any:
    async def producer(emit: Emit) -> None:
        for text in texts:
            await emit(text.encode())

    return producer


async def forever(emit: Emit) -> None:
    await asyncio.Event().wait()


async def test_events_come_in_order_and_the_response_ends() -> None:
    client = Client()
    await client.run([says("a", "b")])
    assert client.text == "abz"
    assert client.messages[0]["status"] == 200
    assert dict(client.messages[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert [m["more_body"] for m in client.messages[1:]] == [True, True, False]


async def test_last_comes_after_all_producers() -> None:
    client = Client()
    turn = asyncio.Event()

    async def waits(emit: Emit) -> None:
        await turn.wait()
        await emit(b"late")

    async def frees(emit: Emit) -> None:
        await emit(b"early ")
        turn.set()

    await client.run([waits, frees], " end")
    assert client.text == "early late end"


async def test_nothing_is_sent_before_the_first_event() -> None:
    client = Client()

    async def fails(emit: Emit) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await client.run([fails])
    assert not client.stream.started
    assert not client.messages


async def test_a_failing_producer_ends_the_others() -> None:
    client = Client()
    ended = asyncio.Event()

    async def waits(emit: Emit) -> None:
        await emit(b"a")
        try:
            await forever(emit)
        finally:
            ended.set()

    async def fails(emit: Emit) -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await client.run([waits, fails])
    assert ended.is_set()
    assert client.text == "a"


async def test_silence_is_filled_with_comments() -> None:
    client = Client(COMMENT._replace(seconds=0.001))
    comments = asyncio.Semaphore(0)
    client.on_body = lambda body: comments.release() if body.startswith(b":") else None

    async def waits(emit: Emit) -> None:
        for _ in range(3):
            await comments.acquire()
        await emit(event(b"x"))

    await client.run([waits], "")
    assert client.text.startswith(": keep-alive\n\n" * 3)
    assert client.text.replace(": keep-alive\n\n", "") == "data: x\n\n"


async def test_no_comment_while_events_flow() -> None:
    client = Client()
    await client.run([says(*"abcdef")])
    assert "keep-alive" not in client.text


async def test_slow_reader_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SLOW_READER", 0.001)
    client = Client()
    client.reads.clear()
    with pytest.raises(ClientGone):
        await client.run([says("a")])
    assert client.text == ""


async def test_slow_reader_is_given_up_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SLOW_READER", 0.001)
    client = Client(COMMENT._replace(seconds=0.001))
    client.reads.clear()
    with pytest.raises(ClientGone):
        await client.run([forever])


async def test_hang_up_ends_the_producers() -> None:
    client = Client()
    ended = asyncio.Event()

    async def waits(emit: Emit) -> None:
        await emit(b"a")
        client.gone.set()
        try:
            await forever(emit)
        finally:
            ended.set()

    with pytest.raises(ClientGone):
        await client.run([waits, forever])
    assert ended.is_set()
    assert client.text == "a"


async def test_hang_up_after_the_last_event_is_none() -> None:
    client = Client()
    client.on_body = lambda body: client.gone.set() if body == b"z" else None
    await client.run([says("a")])
    assert client.messages[-1] == {"type": "http.response.body", "body": b"z", "more_body": False}


async def test_work_that_is_done_wins_over_a_hang_up() -> None:
    client = Client()
    client.gone.set()

    async def work() -> int:
        return 5

    assert await while_connected(client.receive, work()) == 5


async def test_both_end_when_the_caller_is_cancelled() -> None:
    ended: list[str] = []

    async def runs(name: str) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    task = asyncio.create_task(watched(runs("work"), runs("watch")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == ["watch", "work"]
