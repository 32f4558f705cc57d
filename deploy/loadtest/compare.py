"""``make compare``: one scenario on this server and on other MLX servers, one after the other.

Installs the others into venvs of their own, serves one model with each, runs the same scenario
file on each and prints the table. What cannot be installed or started here is left out with the
reason. ``make bench`` asks more of fewer servers.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from deploy.loadtest import random_model
from deploy.loadtest.comparison import load_rows, markdown
from deploy.loadtest.measure import REQUEST_LIMIT, RESULTS, machine, warm_up
from deploy.loadtest.peers import PEERS, install
from deploy.loadtest.servers import KINDS, Kind, ServerFailed, ended_by_signals, serving
from engine import embedded
from server.bench import INTERRUPTED, Run
from server.bench_client import BenchError
from server.bench_page import page
from server.bench_scenario import Scenario, read_scenario
from server.settings_file import ConfigError

FOLDER = Path("build/peers")
QUICK = 4  # a quick look has a load smaller by this factor
OURS = "commons"


def measure(name: str, kind: Kind, scenario: Scenario, model: Path, out: Path) -> dict[str, Any]:
    """The report of one server, or ``{"failure": line}``. Writes its page beside its log."""
    try:
        with serving(name, model, out / f"{name}.log", kind=kind) as running:
            endpoint = asyncio.run(warm_up(running.endpoint))
            report = Run(endpoint, scenario, limit_s=REQUEST_LIMIT).run()
    except (ServerFailed, BenchError) as error:
        return {"failure": str(error)}
    (out / f"{name}.html").write_text(page(report), encoding="utf-8")
    return {**report, "peak_rss_mib": running.peak_rss >> 20}


def compare(
    scenario: Scenario, servers: Sequence[str], model: Path, folder: Path, out: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each server's report, with its ``server_version``, as soon as it is there.

    Raises KeyboardInterrupt after the report of a server whose load was interrupted.
    """
    console = Console()
    for name in servers:
        version = commons_version() if name == OURS else PEERS[name].version
        console.print(f"{scenario.name} on {name} {version}")
        try:
            kind = KINDS[OURS] if name == OURS else install(name, folder)
            numbers = measure(name, kind, scenario, model, out)
        except ServerFailed as error:
            numbers = {"failure": str(error)}
        finally:
            shutil.rmtree(folder / name / "home", ignore_errors=True)
        yield name, {**numbers, "server_version": version}
        if numbers.get("interrupted"):
            raise KeyboardInterrupt


def commons_version() -> str:
    """Of this server."""
    return importlib.metadata.version("mlx-commons")


def keep(scenario: Scenario, results: dict[str, Any], out: Path) -> str:
    """The table, after everything was written to ``out``."""
    record = {"machine": machine(), "results": results}
    (out / "numbers.json").write_text(json.dumps(record, indent=2) + "\n")
    table = text(scenario, results)
    (out / "table.md").write_text(table, encoding="utf-8")
    return table


def text(scenario: Scenario, results: dict[str, Any]) -> str:
    """The table as Markdown, and below it why something is missing."""
    table = markdown({scenario.name: results}, list(results), load_rows(scenario))
    versions = [f"{n} {r['server_version']}" for n, r in results.items() if "failure" not in r]
    notes = [f"- {name}: {r['failure']}" for name, r in results.items() if "failure" in r]
    notes += [f"- {name}: interrupted" for name, r in results.items() if r.get("interrupted")]
    parts = [scenario.about, "", table, ", ".join(versions), "", *notes]
    return "\n".join(parts).rstrip() + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make compare", description="compare MLX servers")
    parser.add_argument("--scenario", default="agent-swarm", help="a name, or a .toml file")
    parser.add_argument("--servers", default=",".join((OURS, *PEERS)), help="comma-separated")
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", type=Path, help="a model directory instead of a random model")
    models.add_argument(
        "--embedded",
        action="store_const",
        const=embedded.path(),
        dest="model",
        help="the model that comes with this server instead of a random model",
    )
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where the others are installed"
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the load")
    chosen = parser.parse_args(arguments)
    chosen.servers = chosen.servers.split(",")
    for name in chosen.servers:
        if name not in (OURS, *PEERS):
            parser.error(f"{name!r} is not one of {', '.join((OURS, *PEERS))}")
    try:
        chosen.scenario = read_scenario(chosen.scenario)
    except ConfigError as error:
        parser.error(str(error))
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares what the command line asks for; 1 if nothing could be measured, 130 if interrupted.

    What was measured before an interruption is shown and kept.
    """
    chosen, console = parse(arguments), Console()
    scenario = chosen.scenario.smaller(QUICK) if chosen.quick else chosen.scenario
    out = RESULTS / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
    out.mkdir(parents=True)
    results: dict[str, Any] = {}
    interrupted = False
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory() as scratch:
            model = chosen.model or random_model.make(Path(scratch) / "random-qwen3")
            for name, numbers in compare(scenario, chosen.servers, model, chosen.folder, out):
                results[name] = numbers
                keep(scenario, results, out)
    except KeyboardInterrupt:
        interrupted = True
    if results:
        console.print(Markdown(keep(scenario, results, out)))
    console.print(f"{'interrupted; ' if interrupted else ''}written to {out}")
    if interrupted:
        return INTERRUPTED
    return int(all("failure" in numbers for numbers in results.values()))


if __name__ == "__main__":
    sys.exit(main())
