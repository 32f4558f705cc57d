"""How long bad requests take to be refused, and whether a stream beside them notices.

``python -m deploy.loadtest.refusals`` starts the server on the embedded model and prints a table:
for each body and route the status, the field that is named and the time; then the longest pause of
the stream beside them, and the one of the same stream alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp
from rich.console import Console
from rich.table import Table

from tests.hostile import BAD_SCHEMAS, COSTLY, PLAIN, as_schema
from tests.server.process import Server

MODEL = "commons-tiny"
ALONE = 5.0  # seconds of the stream before the bad requests
DEEP = 100_000
JSON = {"content-type": "application/json"}
MANY_TOKENS = 60_000
TOOLS = (  # what they are called, their parameters and how many there are
    ("many tools", PLAIN, 10_000),
    ("huge tools", COSTLY["alternatives"], 20),
    ("large tools", COSTLY["alternatives"], 2),
)


class Bad(NamedTuple):
    """A request, as bytes, since some of them are no JSON."""

    name: str
    route: str
    content: bytes


class Answer(NamedTuple):
    """What came back: ``param`` is the field, or the message where the dialect names none.

    ``began`` by time.perf_counter.
    """

    status: int
    param: str
    began: float
    seconds: float


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | more


def response(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "hi", "max_output_tokens": 16} | more


def bad_requests() -> Iterator[Bad]:
    """Schemas, tools, depth, surrogates and contradictions, for each route that takes them."""
    for name, schema in {**BAD_SCHEMAS, **COSTLY}.items():
        text = {"format": {"type": "json_schema", "name": "it", "schema": schema}}
        yield _bad(f"schema: {name}", "chat/completions", chat(response_format=as_schema(schema)))
        yield _bad(f"schema: {name}", "responses", response(text=text))
    for name, parameters, count in TOOLS:
        functions = [{"name": f"f{i}", "parameters": parameters} for i in range(count)]
        tools = [{"type": "function", "function": each} for each in functions]
        yield _bad(name, "chat/completions", chat(tools=tools, tool_choice="required"))
        flat = [{"type": "function", **each} for each in functions]
        yield _bad(name, "responses", response(tools=flat, tool_choice="required"))
        own = [{"name": f["name"], "input_schema": f["parameters"]} for f in functions]
        yield _bad(name, "messages", chat(tools=own, tool_choice={"type": "any"}))
    expressions = {"catastrophic": "(a|a?)+(a+)+[ab]*a[ab]{20}", "deep": "(" * 4000 + ")" * 4000}
    for name, expression in expressions.items():
        yield _bad(f"regex: {name}", "chat/completions", chat(guided_regex=expression))
    both = {"guided_regex": "a", "response_format": {"type": "json_object"}}
    yield _bad("contradiction", "chat/completions", chat(**both))
    for route, body in (
        ("chat/completions", chat()),
        ("responses", response()),
        ("messages", chat()),
    ):
        yield _bad("surrogate", route, body | {"model": "\ud800"})
        plain = json.dumps(body)[:-1].encode()
        deep = b', "tools": [' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"]}"
        yield Bad("depth", route, plain + deep)


def _bad(name: str, route: str, body: dict[str, Any]) -> Bad:
    return Bad(name, route, json.dumps(body).encode())


async def ask(http: aiohttp.ClientSession, bad: Bad) -> Answer:
    """Sends one, alone."""
    began = time.perf_counter()
    async with http.post(f"/v1/{bad.route}", data=bad.content, headers=JSON) as answer:
        text = await answer.text()
        seconds = time.perf_counter() - began
    error = json.loads(text).get("error") or {}
    return Answer(
        answer.status, str(error.get("param") or error.get("message", ""))[:60], began, seconds
    )


class Listener:
    """Reads streams without end, one after the other, and keeps the times of what comes."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.times: list[float] = []
        self.begun = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled."""
        body = chat(max_tokens=MANY_TOKENS, stream=True, ignore_eos=True)
        while True:
            async with self._http.post("/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                async for _ in answer.content:
                    self.times.append(time.perf_counter())
                    self.begun.set()

    def longest(self, since: float, until: float) -> float:
        """The longest time without anything, in seconds."""
        times = [since, *(t for t in self.times if since < t < until), until]
        return max(b - a for a, b in pairwise(times))


class Row(NamedTuple):
    """One line of the table."""

    bad: Bad
    answer: Answer
    pause: float


async def measure(url: str) -> tuple[list[Row], float]:
    """All answers with the stream's longest pause beside each, and the one before all."""
    requests = list(bad_requests())  # made before: nothing else may keep the reader busy
    patience = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=patience) as http:
        listener = Listener(http)
        stream = asyncio.create_task(listener.run())
        await listener.begun.wait()
        began = time.perf_counter()
        await asyncio.sleep(ALONE)
        busy = time.perf_counter()
        answers = [(bad, await ask(http, bad)) for bad in requests]
        stream.cancel()
    rows = [
        Row(bad, answer, listener.longest(answer.began, answer.began + answer.seconds))
        for bad, answer in answers
    ]
    return rows, listener.longest(began, busy)


def main() -> None:
    """Prints the table."""
    with Server() as server:
        rows, alone = asyncio.run(measure(server.ready().url))
    table = Table("body", "route", "status", "field, or what is said", "time", "stream's pause")
    for bad, answer, pause in sorted(rows, key=lambda row: -row.answer.seconds):
        times = (f"{answer.seconds:.3f} s", f"{pause:.3f} s")
        table.add_row(bad.name, bad.route, str(answer.status), answer.param, *times)
    console = Console(width=120)
    console.print(table)
    longest = max(row.pause for row in rows)
    console.print(f"longest pause of the stream: {longest:.3f} s beside them, {alone:.3f} s alone")


if __name__ == "__main__":
    main()
