"""Requests for eight adapters, on both servers: ``python -m deploy.loadtest.adapter_stream``.

Thirty-two clients each ask for one adapter after the other. mlx_lm.server takes the directory of an
adapter with the request, and drains and reloads its model to change it. Prints the wall times.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
from mlx_lm import load as load_model

from deploy.loadtest import random_model
from deploy.loadtest.adapter_rows import ADAPTERS, RANK, write_adapter
from deploy.loadtest.scenarios import text
from deploy.loadtest.servers import Running, serving

CLIENTS, TURNS, PROMPT, NEW = 32, 3, 200, 128
TIMEOUT = aiohttp.ClientTimeout(total=3600)


def requests(names: list[str]) -> list[list[tuple[str, str]]]:
    """For each client the adapters and prompts that it asks for in turn."""
    rng = random.Random(0)
    return [
        [(rng.choice(names), text(f"adapters {client} {turn}", PROMPT)) for turn in range(TURNS)]
        for client in range(CLIENTS)
    ]


def body(kind: str, model: str, adapter: Path, prompt: str) -> dict[str, Any]:
    """A request for an adapter in the words of that server."""
    asked: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0}
    if kind == "commons":
        return asked | {"model": adapter.name}
    return asked | {"adapters": str(adapter)}


async def put(kind: str, running: Running, folder: Path, names: list[str]) -> dict[str, float]:
    """Wall time of all requests, and the tokens that came."""
    endpoint = running.endpoint
    tokens = 0
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:

        async def client(asked: list[tuple[str, str]]) -> None:
            nonlocal tokens
            for name, prompt in asked:
                content = body(kind, endpoint.model, folder / name, prompt)
                async with session.post(f"{endpoint.base}/completions", json=content) as answer:
                    answer.raise_for_status()
                    tokens += (await answer.json())["usage"]["completion_tokens"]

        began = time.perf_counter()
        await asyncio.gather(*(client(asked) for asked in requests(names)))
        return {"seconds": time.perf_counter() - began, "tokens": tokens}


def main() -> None:
    """Measures and prints one JSON object."""
    with random_model.chosen("one stream of adapter requests on two servers") as (model, scratch):
        network, _ = load_model(str(model))[:2]
        for i in range(ADAPTERS):
            write_adapter(network, scratch / f"a{i}", RANK, i)
        names = [f"a{i}" for i in range(ADAPTERS)]
        options = [word for n in names for word in ("--adapter", f"{n}={scratch / n}")]
        numbers: dict[str, Any] = {}
        for kind in ("commons", "mlx_lm"):
            more = options if kind == "commons" else []
            with serving(kind, model, scratch / f"{kind}.log", more) as running:
                numbers[kind] = asyncio.run(put(kind, running, scratch, names))
        ours, theirs = numbers["commons"]["seconds"], numbers["mlx_lm"]["seconds"]
        print(json.dumps({**numbers, "times": round(theirs / ours, 2)}))


if __name__ == "__main__":
    main()
