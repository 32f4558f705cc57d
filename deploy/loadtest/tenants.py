"""What tenants notice of each other: ``python -m deploy.loadtest.tenants [MODEL_DIR]``.

Starts real servers with tenants and keys, and prints one JSON object:

- ``lone``: an agent alone, then beside 30 busy ones of another tenant: TTFT at the 95th percentile;
- ``weights``: two tenants of 15 agents each, always backlogged on 8 rows, weights 1 and 3: what
  each is served;
- ``scan``: a tenant's hit rate alone, and beside one that sends long one-off prompts without pause
  while the first one's agents pause between turns;
- the same without fairness (``deploy.loadtest.first_come``): the throughput of a fixed load for the
  first two, the hit rates for the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from deploy.loadtest import random_model
from deploy.loadtest.scenarios import text, user
from deploy.loadtest.servers import Running, environment, serving
from server.bench_client import Endpoint, Message, Reply, open_session, stream_reply

STALL_TARGET = 0.1  # s, the server's default
TURNS = 24  # of the lone agent
BUSY, ROWS, SECONDS = 30, 8, 40.0
SYSTEM, QUESTION, NEW, ROUNDS = 2000, 100, 32, 4  # tokens, and turns until an agent starts anew
SCAN_MEMORY, SCANNERS, ONE_OFF, PAUSE = "64MB", 4, 4000, 6.0  # PAUSE: s between turns
LIMIT = 900.0  # s for one request

Heard = Callable[[Reply], None]


@contextmanager
def tenants(
    kind: str, model: Path, folder: Path, weights: dict[str, float], *options: str
) -> Iterator[dict[str, Endpoint]]:
    """A server with these tenants; the endpoint of each, with its key."""
    config = folder / "commons.toml"
    config.write_text("".join(f"[tenants.{n}]\nweight = {w}\n" for n, w in weights.items()))
    config.with_name("commons.keys").unlink(missing_ok=True)
    keys = {name: new_key(name, config) for name in weights}
    more = ["--config", str(config), *options]
    with serving(kind, model, folder / f"{kind}.log", more) as running:
        yield {name: _endpoint(running, model, key) for name, key in keys.items()}


def new_key(name: str, config: Path) -> str:
    """A key for a tenant, made as an operator makes one."""
    command = [sys.executable, "-m", "server.cli", "keys", "new", name, "--config", str(config)]
    made = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    return made.stdout.splitlines()[-1]


def _endpoint(running: Running, model: Path, key: str) -> Endpoint:
    return Endpoint(running.endpoint.base, model.name, key)


async def converse(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    name: str,
    turns: int,
    heard: Heard,
    pause: float = 0.0,
) -> None:
    """An agent: so many turns, in conversations that start anew every few of them.

    Agents whose names begin alike have the same system prompt. ``pause`` is in seconds, after
    each turn.
    """
    messages: list[Message] = []
    for turn in range(turns):
        if turn % ROUNDS == 0:
            messages = [{"role": "system", "content": text(f"system of {name[:4]}", SYSTEM)}]
        messages.append(user(text(f"{name} {turn}", QUESTION)))
        reply = await stream_reply(session, endpoint, messages, NEW)
        messages.append({"role": "assistant", "content": reply.text})
        heard(reply)
        await asyncio.sleep(pause)


@contextmanager
def meanwhile(works: list[Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Has agents at work that never finish; one that fails is an error."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
                raise RuntimeError("a busy agent came to its end")
    finally:
        for task in tasks:
            task.cancel()


async def lone(endpoints: dict[str, Endpoint]) -> dict[str, float]:
    """TTFT of one agent, alone and beside busy ones."""
    one, busy = endpoints["one"], endpoints["many"]
    alone: list[float] = []
    beside: list[float] = []
    async with open_session(LIMIT) as session:
        await converse(session, one, "alone", TURNS, lambda r: alone.append(r.ttft))
        first = asyncio.Event()
        heard = 0

        def count(_: Reply) -> None:
            nonlocal heard
            heard += 1
            if heard >= BUSY:
                first.set()

        works = [converse(session, busy, f"busy {i}", 1 << 20, count) for i in range(BUSY)]
        with meanwhile(works):
            await first.wait()
            await converse(session, one, "beside", TURNS, lambda r: beside.append(r.ttft))
    bound = 2 * p95(alone) + 3 * STALL_TARGET
    return {
        "ttft_alone_p95_s": round(p95(alone), 4),
        "ttft_beside_p95_s": round(p95(beside), 4),
        "bound_s": round(bound, 4),
        "busy_replies": heard,
    }


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


async def weighted(endpoints: dict[str, Endpoint], seconds: float) -> dict[str, float]:
    """Tokens that two backlogged tenants are served in a span of time."""
    served = dict.fromkeys(endpoints, 0)
    counting = False

    def counter(name: str) -> Heard:
        def count(reply: Reply) -> None:
            if counting:
                computed = reply.prompt_tokens - reply.cached_tokens
                served[name] += computed + reply.completion_tokens

        return count

    async with open_session(LIMIT) as session:
        works = [
            converse(session, endpoint, f"{name} {i}", 1 << 20, counter(name))
            for name, endpoint in endpoints.items()
            for i in range(BUSY // 2)
        ]
        with meanwhile(works):
            await asyncio.sleep(seconds / 4)  # until both are backlogged and caches are warm
            counting = True
            await asyncio.sleep(seconds)
            counting = False
    return {
        **{f"tokens_{name}": n for name, n in served.items()},
        "three_by_one": round(served["three"] / served["one"], 3),
    }


async def fixed(endpoints: dict[str, Endpoint], agents: dict[str, int]) -> float:
    """Completion tokens a second of a load that ends."""
    tokens = 0

    def count(reply: Reply) -> None:
        nonlocal tokens
        tokens += reply.completion_tokens

    began = time.perf_counter()
    async with open_session(LIMIT) as session:
        works = [
            converse(session, endpoints[name], f"fixed {name} {i}", 2 * ROUNDS, count)
            for name, number in agents.items()
            for i in range(number)
        ]
        await asyncio.gather(*works)
    return tokens / (time.perf_counter() - began)


async def scan(endpoints: dict[str, Endpoint]) -> dict[str, float]:
    """A tenant's hit rate, alone and beside one-off prompts."""

    async def one_offs(session: aiohttp.ClientSession, number: int) -> None:
        for i in range(1 << 20):
            prompt = [user(text(f"one-off {number} {i}", ONE_OFF))]
            await stream_reply(session, endpoints["scan"], prompt, 1)

    async def hits(session: aiohttp.ClientSession, name: str) -> float:
        replies: list[Reply] = []
        works = [
            converse(session, endpoints["work"], f"{name} {i}", 2 * ROUNDS, replies.append, PAUSE)
            for i in range(8)
        ]
        await asyncio.gather(*works)
        return sum(r.cached_tokens for r in replies) / sum(r.prompt_tokens for r in replies)

    async with open_session(LIMIT) as session:
        alone = await hits(session, "alone")
        with meanwhile([one_offs(session, i) for i in range(SCANNERS)]):
            beside = await hits(session, "beside")
    return {"hit_rate_alone": round(alone, 4), "hit_rate_beside": round(beside, 4)}


def measure(model: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """All of it, one server after the other."""
    numbers: dict[str, Any] = {}
    pair, three = {"one": 1.0, "many": 1.0}, {"one": 1.0, "three": 3.0}
    rows = ("--max-rows", str(ROWS))
    with tenants("commons", model, folder, pair) as endpoints:
        numbers["lone"] = asyncio.run(lone(endpoints))
    with tenants("commons", model, folder, three, *rows) as endpoints:
        numbers["weights"] = asyncio.run(weighted(endpoints, seconds))
    numbers["scan"] = {}
    for kind in ("commons", "first_come"):
        memory = ("--kv-memory", SCAN_MEMORY)
        with tenants(kind, model, folder, {"work": 1.0, "scan": 1.0}, *memory) as endpoints:
            numbers["scan"][kind] = asyncio.run(scan(endpoints))
    for name, weights, options, agents in (
        ("lone", pair, (), {"one": 1, "many": BUSY}),
        ("weights", three, rows, {"one": BUSY // 2, "three": BUSY // 2}),
    ):
        rates = {}
        for kind in ("commons", "first_come"):
            with tenants(kind, model, folder, weights, *options) as endpoints:
                rates[kind] = asyncio.run(fixed(endpoints, agents))
        numbers[name]["tok_s"] = {kind: round(rate, 1) for kind, rate in rates.items()}
        numbers[name]["by_first_come"] = round(rates["commons"] / rates["first_come"], 3)
    return numbers


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="what tenants notice of each other")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = args.model or random_model.make(Path(name) / "random-qwen3")
        print(json.dumps(measure(model, Path(name), args.seconds), indent=2))


if __name__ == "__main__":
    main()
