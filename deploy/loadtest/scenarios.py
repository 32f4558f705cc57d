"""The loads that servers are compared under. Each takes an endpoint and returns its numbers.

Most are scenario files; here are those that need a look at single streams, or at one turn by the
one before.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import aiohttp

from server.bench_client import BenchError, Endpoint, Message, Reply, stream_reply
from server.bench_load import find_routes, run_load
from server.bench_results import Results
from server.bench_scenario import read_scenario
from server.bench_text import CHARS_PER_TOKEN, make_text

Numbers = dict[str, Any]
Scenario = Callable[[aiohttp.ClientSession, Endpoint, bool], Awaitable[Numbers]]

QUICK = 4  # a quick look has loads smaller by this factor
GROWTH = (0.01, 0.02, 0.03, 0.04) * 2  # new tokens of a turn by the conversation's length
STALL_ROUNDS = 3
ENDLESS = 8000  # tokens; longer than any stream of the stall scenario is read


def text(seed: str, tokens: int) -> str:
    """Text of roughly ``tokens`` tokens."""
    return make_text(seed, int(tokens * CHARS_PER_TOKEN))


def user(content: str) -> Message:
    """One message of a user."""
    return {"role": "user", "content": content}


async def put(
    name: str, session: aiohttp.ClientSession, endpoint: Endpoint, quick: bool
) -> Numbers:
    """The load of the scenario file of this name."""
    scenario = read_scenario(name)
    if quick:
        scenario = scenario.smaller(QUICK)
    results = Results(scenario.turns, [group.name for group in scenario.clients])
    routes = await find_routes(session, endpoint, scenario)
    await run_load(session, scenario, routes, results)
    return results.json()


async def growth(session: aiohttp.ClientSession, endpoint: Endpoint, quick: bool) -> Numbers:
    """Two conversations, one after the other, that each grow by a few percent a turn."""
    sizes = {"10k": 10_000, "28k": 28_000}
    return {
        name: await _grow(session, endpoint, name, size // QUICK if quick else size)
        for name, size in sizes.items()
    }


async def _grow(
    session: aiohttp.ClientSession, endpoint: Endpoint, name: str, size: int
) -> Numbers:
    system = {"role": "system", "content": text(f"growth {name} system", size // 10)}
    messages = [system, user(text(f"growth {name}", size - size // 10))]
    replies = [await stream_reply(session, endpoint, messages, 16)]
    for turn, part in enumerate(GROWTH):
        messages.append({"role": "assistant", "content": replies[-1].text})
        messages.append(user(text(f"growth {name} turn {turn}", int(size * part))))
        replies.append(await stream_reply(session, endpoint, messages, 16))
    turns = [_turn_numbers(reply) for reply in replies]
    cold, warm = turns[0]["ttft_s"], statistics.median(t["ttft_s"] for t in turns[1:])
    return {
        "cold_ttft_s": cold,
        "warm_ttft_p50_s": warm,
        "cold_by_warm": round(cold / warm, 1),
        "turns": turns,
    }


def _turn_numbers(reply: Reply) -> Numbers:
    return {
        "ttft_s": round(reply.ttft, 4),
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": reply.cached_tokens,
    }


async def stall(session: aiohttp.ClientSession, endpoint: Endpoint, quick: bool) -> Numbers:
    """A cold 10k-token prompt, alone and then next to 8 streams."""
    rows, size = (8 // QUICK, 10_000 // QUICK) if quick else (8, 10_000)

    async def cold(name: str) -> float:
        messages = [user(text(f"stall {name}", size))]
        return (await stream_reply(session, endpoint, messages, 1)).ttft

    alone = [await cold(f"alone {i}") for i in range(STALL_ROUNDS)]
    streams = [_Stream(session, endpoint, i) for i in range(rows)]
    try:
        for stream in streams:
            await stream.texts(8)
        usual = [gap for s in streams for gap in s.gaps(0.0, time.perf_counter())]
        beside, longest = [], []
        for i in range(STALL_ROUNDS):
            start = time.perf_counter()
            beside.append(await cold(f"beside {i}"))
            end = time.perf_counter()
            for stream in streams:
                await stream.texts(4)  # a pause that began before the end has now ended
            longest.append(max(gap for s in streams for gap in s.gaps(start, end)))
    finally:
        await asyncio.gather(*(stream.stop() for stream in streams))
    best, median = min(alone), statistics.median(beside)
    return {
        "streams": rows,
        "usual_pause_p50_s": round(statistics.median(usual), 4),
        "longest_pause_s": round(max(longest), 4),
        "longest_pause_by_round_s": [round(gap, 4) for gap in longest],
        "ttft_alone_s": round(best, 4),
        "ttft_beside_p50_s": round(median, 4),
        "ttft_beside_by_alone": round(median / best, 2),
    }


class _Stream:
    """A reply that is read for as long as somebody looks at its arrivals."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint, number: int) -> None:
        self._arrivals: list[float] = []
        self._news = asyncio.Event()
        messages = [user(text(f"stall stream {number}", 200))]
        self._task = asyncio.create_task(
            stream_reply(session, endpoint, messages, ENDLESS, self._arrived)
        )

    def _arrived(self, now: float) -> None:
        self._arrivals.append(now)
        self._news.set()

    async def texts(self, count: int) -> None:
        """Waits for ``count`` more arrivals. Raises BenchError if the reply ends first."""
        goal = len(self._arrivals) + count
        while len(self._arrivals) < goal:
            self._news.clear()
            news = asyncio.create_task(self._news.wait())
            await asyncio.wait([news, self._task], return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            if self._task.done():
                self._task.result()
                raise BenchError("a stream ended before its pauses were measured")

    def gaps(self, start: float, end: float) -> list[float]:
        """Seconds between arrivals, of all pairs that overlap [start, end)."""
        return [b - a for a, b in pairwise(self._arrivals) if b > start and a < end]

    async def stop(self) -> None:
        """Hangs up."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()


SCENARIOS: dict[str, Scenario] = {
    "agents": functools.partial(put, "agent-swarm"),
    "crowd": functools.partial(put, "crowd"),
    "private": functools.partial(put, "private"),
    "growth": growth,
    "stall": stall,
}
