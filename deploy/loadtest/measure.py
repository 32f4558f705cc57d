"""``make bench``: the same loads on this server and on mlx_lm.server, one after the other.

Every scenario gets a fresh server, so that its memory and its cache are its own. Writes a JSON file
and the table as Markdown to bench-results/.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from deploy.loadtest import random_model
from deploy.loadtest.comparison import markdown
from deploy.loadtest.scenarios import SCENARIOS, Numbers
from deploy.loadtest.servers import KINDS, ServerFailed, environment, openblas, serving
from server.bench_client import BenchError, Endpoint, open_session, stream_reply
from server.bench_load import find_model

RESULTS = Path("bench-results")
FLOORED = ("agents", "crowd")
REQUEST_LIMIT = 1800.0  # s for one request; the slowest of a crowd may wait minutes


async def run_scenario(name: str, endpoint: Endpoint, quick: bool) -> Numbers:
    """The numbers of one scenario, after one short request that nobody counts."""
    endpoint = await warm_up(endpoint)
    async with open_session(REQUEST_LIMIT) as session:
        start = time.perf_counter()
        numbers = await SCENARIOS[name](session, endpoint, quick)
        return {**numbers, "scenario_s": round(time.perf_counter() - start, 2)}


async def warm_up(endpoint: Endpoint) -> Endpoint:
    """Asks for a few tokens; the endpoint, with the model's name where that was open."""
    async with open_session(REQUEST_LIMIT) as session:
        endpoint = await find_model(session, endpoint)
        await stream_reply(session, endpoint, [{"role": "user", "content": "Hello!"}], 4)
        return endpoint


def measure(scenario: str, server: str, model: Path, quick: bool, logs: Path) -> Numbers:
    """One scenario on a fresh server; ``{"failure": line}`` where that did not work."""
    try:
        with serving(server, model, logs / f"{scenario}-{server}.log") as running:
            numbers = asyncio.run(run_scenario(scenario, running.endpoint, quick))
    except (ServerFailed, BenchError) as error:
        return {"failure": str(error)}
    if scenario == "growth":
        add_bare_times(numbers, model)
    if scenario in FLOORED and server == "commons" and not numbers["errors"]:
        add_floor(numbers, model)
    return {**numbers, "peak_rss_mib": running.peak_rss >> 20}


def add_bare_times(numbers: Numbers, model: Path) -> None:
    """Sets beside each time to first token what a bare prefill of its new tokens takes."""
    turns = [turn for size in ("10k", "28k") for turn in numbers[size]["turns"]]
    pairs = [f"{t['cached_tokens']}:{t['prompt_tokens'] - t['cached_tokens']}" for t in turns]
    for turn, bare in zip(turns, run_tool("bare", model, *pairs), strict=True):
        turn["bare_s"] = bare
        turn["ttft_by_bare"] = round(turn["ttft_s"] / bare, 2)


def add_floor(numbers: Numbers, model: Path) -> None:
    """Sets beside the wall time what the same tokens take at least; see ``floor``."""
    turns = numbers["by_turn"]
    agents = turns[0]["replies"]
    shared = turns[0]["cached_tokens"] // (agents - 1)  # one computes it, the others reuse it
    before, suffixes = shared * agents, []
    for turn in turns:
        growth = turn["prompt_tokens"] - before
        computed = turn["prompt_tokens"] - turn["cached_tokens"]
        # The first turn's leader computes the shared prefix as well, which is counted by itself.
        suffixes.append(growth if turn is turns[0] else min(growth, computed))
        before = turn["prompt_tokens"]
    new = numbers["completion_tokens"] // sum(turn["replies"] for turn in turns)
    sizes = [str(size // agents) for size in suffixes]
    options = ["--agents", agents, "--shared", shared, "--new", new, "--suffixes", *sizes]
    numbers["floor"] = run_tool("floor", model, *map(str, options))
    numbers["wall_by_floor"] = round(numbers["wall_s"] / numbers["floor"]["floor_s"], 2)


def run_tool(name: str, model: Path, *arguments: str) -> Any:
    """What a tool of this folder prints, run like a measured server."""
    command = [sys.executable, "-m", f"deploy.loadtest.{name}", str(model), *arguments]
    output = subprocess.run(command, env=environment(), check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def machine() -> dict[str, Any]:
    """What was measured on."""
    packages = ("mlx", "mlx-lm", "mlx-commons")
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "openblas": openblas() is not None,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench", description="compare with mlx_lm.server")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, comma-separated")
    parser.add_argument("--servers", default="commons,mlx_lm", help="of " + ",".join(KINDS))
    parser.add_argument("--model", type=Path, help="a model directory instead of a random model")
    parser.add_argument("--quick", action="store_true", help="a quarter of every load")
    chosen = parser.parse_args(arguments)
    chosen.only, chosen.servers = chosen.only.split(","), chosen.servers.split(",")
    for names, known in ((chosen.only, SCENARIOS), (chosen.servers, KINDS)):
        for name in names:
            if name not in known:
                parser.error(f"{name!r} is not one of {', '.join(known)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; 1 if anything of it failed."""
    chosen, console = parse(arguments), Console()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = RESULTS / stamp
    out.mkdir(parents=True)
    record: dict[str, Any] = {"machine": machine(), "quick": chosen.quick, "results": {}}
    with tempfile.TemporaryDirectory() as scratch:
        model = chosen.model or random_model.make(Path(scratch) / "random-qwen3")
        for scenario in chosen.only:
            for server in chosen.servers:
                console.print(f"{scenario} on {server} ...", end=" ")
                numbers = measure(scenario, server, model, chosen.quick, out)
                record["results"].setdefault(scenario, {})[server] = numbers
                console.print(numbers.get("failure") or f"{numbers['scenario_s']} s")
                (out / "numbers.json").write_text(json.dumps(record, indent=2) + "\n")
    table = markdown(record["results"], chosen.servers)
    (out / "table.md").write_text(table, encoding="utf-8")
    console.print(Markdown(table))
    console.print(f"written to {out}")
    failed = [n for servers in record["results"].values() for n in servers.values()]
    return int(any(n.get("failure") or n.get("errors") for n in failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; what was measured is in bench-results/")
