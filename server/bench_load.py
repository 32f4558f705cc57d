"""What the agents of a load test do: a system prompt, then turns in which the replies are kept.

Runs on the caller's event loop. Knows nothing of terminals or reports.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from server.bench_client import BenchError, Endpoint, Message, list_models, stream_reply
from server.bench_report import Results
from server.bench_text import CHARS_PER_TOKEN, make_text


@dataclass(frozen=True, slots=True)
class Load:
    """What the agents do. Lengths in tokens, roughly; ``stagger`` in seconds between starts."""

    agents: int = 16
    turns: int = 3
    system_tokens: int = 4000
    user_tokens: int = 150
    max_tokens: int = 48
    private: bool = False
    stagger: float = 0.0
    seed: int = 0

    def system_prompt(self, agent: int) -> str:
        """The agent's system prompt: everybody's, or its own with ``private``."""
        whose = f"{self.seed} system {agent if self.private else 'shared'}"
        return make_text(whose, int(self.system_tokens * CHARS_PER_TOKEN))

    def question(self, agent: int, turn: int) -> str:
        """What the agent says in its ``turn``-th turn, from 0."""
        chars = int(self.user_tokens * CHARS_PER_TOKEN)
        return f"agent {agent}: " + make_text(f"{self.seed} agent {agent} turn {turn}", chars)


async def run_load(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    load: Load,
    results: Results,
    on_text: Callable[[float], None] | None = None,
) -> None:
    """Puts ``load`` on ``endpoint`` and fills ``results``, also when it is cancelled."""
    prompts = [load.system_prompt(i) for i in range(load.agents if load.private else 1)]

    async def agent(i: int) -> None:
        messages: list[Message] = [{"role": "system", "content": prompts[i % len(prompts)]}]
        await asyncio.sleep(i * load.stagger)
        for turn in range(load.turns):
            messages.append({"role": "user", "content": load.question(i, turn)})
            try:
                reply = await stream_reply(session, endpoint, messages, load.max_tokens, on_text)
            except BenchError as error:
                results.errors[str(error)] += 1
                return
            results.by_turn[turn].append(reply)
            messages.append({"role": "assistant", "content": reply.text})

    start = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for i in range(load.agents):
                group.create_task(agent(i))
    finally:
        results.wall = time.perf_counter() - start


async def find_model(session: aiohttp.ClientSession, endpoint: Endpoint) -> Endpoint:
    """``endpoint`` with the model ``default`` replaced by the first one that it lists."""
    if endpoint.model != "default":
        return endpoint
    models = await list_models(session, endpoint)
    if not models:
        raise BenchError(f"{endpoint.base} lists no model; name one with --model")
    return endpoint if "default" in models else endpoint._replace(model=models[0])
