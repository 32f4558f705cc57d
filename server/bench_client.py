"""One streamed chat reply from any OpenAI-compatible endpoint, timed at the socket.

Runs on the caller's event loop. Knows nothing of this server's insides, agents or reports.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp
import msgspec

Message = dict[str, str]


class BenchError(Exception):
    """A request that did not end well; the text is one line for a person."""


class Endpoint(NamedTuple):
    """``base`` ends in ``/v1`` or the like, without a slash; ``key`` may be empty."""

    base: str
    model: str
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class Reply(NamedTuple):
    """A finished reply. Token counts are what the server's usage says.

    ``ttft`` and ``total`` are the seconds to the first and to the last text, from when the
    request was due, ``pauses`` the seconds between two arrivals of text. Without usage from the
    server (``counted`` False) the prompt counts are 0 and ``completion_tokens`` counts arrivals.
    """

    text: str
    ttft: float
    total: float
    pauses: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str
    counted: bool
    cached_counted: bool

    @property
    def inter_token(self) -> float | None:
        """Mean seconds per token after the first; None for a reply of one token."""
        if self.completion_tokens < 2:
            return None
        return (self.total - self.ttft) / (self.completion_tokens - 1)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class Model(msgspec.Struct):
    """A model that an endpoint lists; an adapter has its base as ``parent``."""

    id: str
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[Model] = []


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_models = msgspec.json.Decoder(_Models).decode


def open_session(limit_s: float) -> aiohttp.ClientSession:
    """A session without a limit on connections; a request may take ``limit_s`` seconds."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=limit_s), connector=aiohttp.TCPConnector(limit=0)
    )


async def list_models(session: aiohttp.ClientSession, endpoint: Endpoint) -> list[Model]:
    """What the endpoint lists. Raises BenchError where it does not answer so."""
    try:
        async with session.get(endpoint.base + "/models", headers=endpoint.headers) as response:
            body = await response.read()
            if response.status != 200:
                raise BenchError(_http_error(response.status, body))
            return _decode_models(body).data
    except msgspec.DecodeError as error:
        raise BenchError(f"{endpoint.base} is not an OpenAI-compatible endpoint") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchError(_transport_error(endpoint.base, error)) from error


async def stream_reply(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    messages: Sequence[Message],
    max_tokens: int,
    on_text: Callable[[float], None] | None = None,
    due: float | None = None,
) -> Reply:
    """Asks for a greedy reply of at most ``max_tokens`` and reads it to its end.

    ``on_text`` is called with ``time.perf_counter()`` at each arrival of text. Times count from
    ``due``, by the same clock, where a request should have been sent earlier than now.
    Raises BenchError for anything but a complete reply.
    """
    body = {
        "model": endpoint.model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    url = endpoint.base + "/chat/completions"
    reader = _ReplyReader(on_text, time.perf_counter() if due is None else due)
    try:
        async with session.post(url, json=body, headers=endpoint.headers) as response:
            if response.status != 200:
                raise BenchError(_http_error(response.status, await response.read()))
            async for events in _event_batches(response):
                reader.feed(events)
    except msgspec.DecodeError as error:
        raise BenchError(f"the stream holds something else than chat chunks: {error}") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchError(_transport_error(endpoint.base, error)) from error
    return reader.reply()


async def _event_batches(response: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
    """The payloads of server-sent events, all that arrived in one read together."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        events = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        if events:
            yield events


class _ReplyReader:
    """Collects the events of one reply."""

    def __init__(self, on_text: Callable[[float], None] | None, start: float) -> None:
        self._on_text = on_text
        self._start = start
        self._arrivals: list[float] = []
        self._text: list[str] = []
        self._usage: _Usage | None = None
        self._finish_reason = ""
        self._done = False

    def feed(self, events: list[bytes]) -> None:
        """Takes the payloads that one read brought."""
        now = time.perf_counter()
        known = len(self._text)
        for event in events:
            if event == b"[DONE]":
                self._done = True
                continue
            chunk = _decode_chunk(event)
            if chunk.error is not None:
                raise BenchError(f"the stream ended in an error: {_error_text(chunk.error)}")
            self._usage = chunk.usage or self._usage
            for choice in chunk.choices:
                self._finish_reason = choice.finish_reason or self._finish_reason
                delta = choice.delta
                text = delta.content or delta.reasoning or delta.reasoning_content
                if text:
                    self._text.append(text)
        if len(self._text) > known:
            self._arrivals.append(now)
            if self._on_text:
                self._on_text(now)

    def reply(self) -> Reply:
        """The whole reply. Raises BenchError if the stream broke off."""
        end = time.perf_counter()
        if not (self._done or self._finish_reason):
            raise BenchError("the stream broke off before its end")
        at, usage = self._arrivals, self._usage or _Usage()
        details = usage.prompt_tokens_details or _Details()
        return Reply(
            text="".join(self._text),
            ttft=(at[0] if at else end) - self._start,
            total=(at[-1] if at else end) - self._start,
            pauses=tuple(b - a for a, b in pairwise(at)),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=details.cached_tokens or 0,
            completion_tokens=usage.completion_tokens if self._usage else len(at),
            finish_reason=self._finish_reason,
            counted=self._usage is not None,
            cached_counted=details.cached_tokens is not None,
        )


def _http_error(status: int, body: bytes) -> str:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = body.decode("utf-8", "replace")
    if isinstance(answer, dict):
        answer = answer.get("error", answer)
    return f"HTTP {status}: {_error_text(answer)}"


def _error_text(error: object) -> str:
    """The message of an error in any of the usual shapes, on one line."""
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:300] or "no text"


def _transport_error(base: str, error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no reply within --timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no server at {base}: {error.strerror or error}"
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return f"{base} is not a URL"
    return f"the connection broke: {error or type(error).__name__}"
