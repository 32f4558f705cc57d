"""A small endpoint on a socket that says what it is told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Iterator

from aiohttp import web

from deploy.loadtest.scenarios import ENDLESS

METRICS = """\
# TYPE commons_memory_bytes gauge
commons_memory_bytes{adapter="",draft="",kind="active",model="a"} 3e+06
commons_memory_bytes{adapter="",draft="",kind="weights",model="a"} 1.5e+06
commons_memory_bytes{adapter="",draft="",kind="weights",model="b"} 1000.0
commons_kv_cache_bytes{adapter="",draft="",model="a",state="lent"} 7.0
process_resident_memory_bytes 5e+08
"""
WORDS = ("one ", "two ", "three ", "four")


class TinyEndpoint:
    """Answers every chat with WORDS; a token is a word, and what an earlier prompt began with
    counts as cached. ``say`` replaces what is written to the stream."""

    def __init__(self) -> None:
        self.models: list[str | dict[str, str]] = ["tiny"]
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.usages: list[dict] = []
        self.refusal: tuple[int, str] | None = None
        self.say: list[bytes] | None = None
        self.hold_from_turn: int | None = None
        self.held = threading.Semaphore(0)
        self.hung_up = 0
        self._seen: list[list[str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._up = threading.Event()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> TinyEndpoint:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await web.SockSite(runner, sock).start()
        self._up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        data = [m if isinstance(m, dict) else {"id": m} for m in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _metrics(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer watcher":
            return web.Response(status=401)
        return web.Response(text=METRICS)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if self.refusal:
            status, message = self.refusal
            return web.json_response({"error": {"message": message}}, status=status)
        usage = self._usage(body["messages"])
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        turn = sum(m["role"] == "user" for m in body["messages"])
        if self.hold_from_turn is not None and turn >= self.hold_from_turn:
            self.held.release()
            await self._stop.wait()
            return response
        pieces = self.say if self.say is not None else stream_of(WORDS, usage)
        if body["max_tokens"] >= ENDLESS:
            pieces = itertools.repeat(delta(content="more "))
        try:
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0)
        except ConnectionResetError:
            self.hung_up += 1
        return response

    def _usage(self, messages: list[dict]) -> dict:
        words = [w for m in messages for w in m["content"].split()]
        cached = max((common(words[:-1], earlier) for earlier in self._seen), default=0)
        self._seen.append(words)
        usage = {
            "prompt_tokens": len(words),
            "completion_tokens": len(WORDS),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        self.usages.append(usage)
        return usage


def common(one: list[str], other: list[str]) -> int:
    """Length of the common start of two prompts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def delta(**fields: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def stream_of(words: tuple[str, ...], usage: dict | None) -> Iterator[bytes]:
    yield delta(role="assistant", content="")
    for word in words:
        yield delta(content=word)
    yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    if usage:
        yield event({"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"
