"""Puts a scenario on an endpoint: conversations in which the replies are kept.

Runs on the caller's event loop. Knows nothing of terminals or reports.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping

import aiohttp

from .bench_arrivals import arrival_times
from .bench_client import BenchError, Endpoint, Message, list_models, stream_reply
from .bench_prompts import question, reply_tokens, system_prompt
from .bench_results import Results
from .bench_scenario import Closed, Group, Scenario

RETRY = 1.0  # s that a client of a closed loop waits after an error, so that it does not spin
LONG = 2000  # tokens; longer texts are made up in a thread, next to the streams being timed

Routes = Mapping[str, tuple[Endpoint, ...]]
"""Where each group of a scenario sends its conversations, dealt out in turn."""


async def run_load(
    session: aiohttp.ClientSession,
    scenario: Scenario,
    routes: Routes,
    results: Results,
    on_text: Callable[[float], None] | None = None,
) -> None:
    """Runs ``scenario`` to its end and fills ``results``, also when it is cancelled."""
    results.begin(time.perf_counter())
    try:
        async with asyncio.TaskGroup() as tasks:
            for group in scenario.clients:
                run = _GroupRun(session, scenario, group, routes[group.name], results, on_text)
                tasks.create_task(run.run())
    finally:
        results.end(time.perf_counter())


async def find_routes(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    scenario: Scenario,
    keys: Mapping[str, str] | None = None,
) -> dict[str, tuple[Endpoint, ...]]:
    """The routes of a scenario; ``keys`` are those of tenants, ``endpoint`` has everybody else's.

    Raises BenchError where the server has not what the scenario asks for.
    """
    routes: dict[str, tuple[Endpoint, ...]] = {}
    for group in scenario.clients:
        key = (keys or {}).get(group.tenant or "", endpoint.key)
        mine = endpoint._replace(key=key)
        if group.models == "default":
            routes[group.name] = (await find_model(session, mine),)
            continue
        names = group.models
        if names == "adapters":
            names = tuple(m.id for m in await list_models(session, mine) if m.parent)
            if not names:
                raise BenchError(f"{endpoint.base} lists no adapters for {group.name!r}")
        routes[group.name] = tuple(mine._replace(model=name) for name in names)
    return routes


async def find_model(session: aiohttp.ClientSession, endpoint: Endpoint) -> Endpoint:
    """``endpoint`` with the model ``default`` replaced by the first one that it lists."""
    if endpoint.model != "default":
        return endpoint
    models = [model.id for model in await list_models(session, endpoint)]
    if not models:
        raise BenchError(f"{endpoint.base} lists no model; name one with --model")
    return endpoint if "default" in models else endpoint._replace(model=models[0])


class _GroupRun:
    """One group's part of a run."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        scenario: Scenario,
        group: Group,
        endpoints: tuple[Endpoint, ...],
        results: Results,
        on_text: Callable[[float], None] | None,
    ) -> None:
        self._session = session
        self._scenario = scenario
        self._group = group
        self._endpoints = endpoints
        self._results = results
        self._on_text = on_text
        self._start = results.start
        self._last = scenario.conversations(group)

    async def run(self) -> None:
        """All conversations of the group."""
        arrivals = self._group.arrivals
        async with asyncio.TaskGroup() as tasks:
            if isinstance(arrivals, Closed):
                for client in range(arrivals.clients):
                    tasks.create_task(self._client(arrivals, client))
                return
            times = arrival_times(arrivals, f"{self._scenario.seed} {self._group.name} arrivals")
            for number, at in enumerate(itertools.islice(times, self._last)):
                if self._over(at):
                    break
                opening = await self._opening(number)
                await asyncio.sleep(self._start + at - time.perf_counter())
                tasks.create_task(self._converse(number, opening, self._start + at))

    async def _client(self, arrivals: Closed, client: int) -> None:
        """One client of a closed loop: every so-many-th conversation, one after the other."""
        await asyncio.sleep(client * arrivals.stagger_s)
        number, good = client, True
        while (self._last is None or number < self._last) and not self._over():
            if not good:
                await asyncio.sleep(RETRY)
            good = await self._converse(number, await self._opening(number), None)
            number += arrivals.clients

    def _over(self, at: float | None = None) -> bool:
        limit = self._scenario.duration_s
        if at is None:
            at = time.perf_counter() - self._start
        return limit is not None and at >= limit

    async def _opening(self, number: int) -> list[Message]:
        """What stands at the beginning of a conversation, up to its first question."""
        scenario, group = self._scenario, self._group
        messages = [await self._question(number, 0)]
        if group.system_tokens:
            if group.system_tokens > LONG:
                system = await asyncio.to_thread(system_prompt, scenario, group, number)
            else:
                system = system_prompt(scenario, group, number)
            messages.insert(0, {"role": "system", "content": system})
        return messages

    async def _question(self, number: int, turn: int) -> Message:
        longest = self._group.user_tokens
        if (longest if isinstance(longest, int) else longest[1]) > LONG:
            text = await asyncio.to_thread(question, self._scenario, self._group, number, turn)
        else:
            text = question(self._scenario, self._group, number, turn)
        return {"role": "user", "content": text}

    async def _converse(self, number: int, messages: list[Message], due: float | None) -> bool:
        """Holds a conversation, whose first turn is ``due`` then or now; whether it came to its
        end without an error."""
        group, endpoint = self._group, self._endpoints[number % len(self._endpoints)]
        for turn in range(group.turns):
            if turn:
                messages.append(await self._question(number, turn))
                await asyncio.sleep(group.pause_s)
            if due is None or turn:
                if self._over():
                    return True
                due = time.perf_counter()
            limit = reply_tokens(self._scenario, group, number, turn)
            try:
                reply = await stream_reply(
                    self._session, endpoint, messages, limit, self._on_text, due
                )
            except BenchError as error:
                self._results.fail(group.name, turn, due, time.perf_counter(), str(error))
                return False
            self._results.add(group.name, turn, due, reply)
            messages.append({"role": "assistant", "content": reply.text})
        return True
