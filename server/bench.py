"""``commons bench``: a load on any OpenAI-compatible endpoint, and what came of it.

A process of its own with one event loop. Knows of the server what any client knows. The JSON
report is described in ``server.bench_json``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from server.bench_client import BenchError, Endpoint, open_session
from server.bench_display import Display
from server.bench_json import report
from server.bench_load import Routes, find_model, find_routes, run_load
from server.bench_options import AgentOptions, LoadOptions, ReportOptions, TargetOptions
from server.bench_page import page
from server.bench_report import group_table, total_table, turn_table
from server.bench_results import Results
from server.bench_scenario import Scenario, changed, read_scenario
from server.bench_watch import Look, watch
from server.options import with_options
from server.settings_file import ConfigError

INTERRUPTED = 130  # exit code, as shells use it for Ctrl-C


@with_options()
def bench(
    context: typer.Context,
    target: TargetOptions,
    load: LoadOptions,
    agents: AgentOptions,
    report_to: ReportOptions,
) -> None:
    """Put a load on any endpoint: many agents with one system prompt, or a --scenario."""
    scenario = _scenario(context, load, agents)
    for option, file in (("--json", report_to.json), ("--html", report_to.html)):
        _check_folder(option, file)
    endpoint = Endpoint(target.base.rstrip("/"), target.model, target.key)
    keys = _tenant_keys(target.tenant_key or [])
    run = Run(endpoint, scenario, keys, target.metrics_key, target.timeout)
    try:
        numbers = run.run()
    except BenchError as error:
        typer.echo(f"commons bench: {error}", err=True)
        raise typer.Exit(1) from error
    _show(numbers, report_to.json)
    _write(report_to.html, page(numbers) if report_to.html else "")
    if failure := run.results.failure():
        typer.echo(f"commons bench: {failure}", err=True)
    if run.results.interrupted or run.results.failed:
        raise typer.Exit(INTERRUPTED if run.results.interrupted else 1)


def _scenario(context: typer.Context, load: LoadOptions, agents: AgentOptions) -> Scenario:
    scenario = agents.as_scenario()
    if load.scenario:
        _refuse(context, [field.name for field in fields(agents)])
        with _blaming("--scenario"):
            scenario = read_scenario(load.scenario)
    with _blaming("--duration, --seed"):
        return changed(scenario, duration_s=load.duration, seed=load.seed)


class Run:
    """One run of a load, with what is seen while it lasts."""

    def __init__(
        self,
        endpoint: Endpoint,
        scenario: Scenario,
        keys: Mapping[str, str] | None = None,
        metrics_key: str = "",
        limit_s: float = 900.0,
    ) -> None:
        self.results = Results(scenario.turns, [group.name for group in scenario.clients])
        self._endpoint = endpoint
        self._scenario = scenario
        self._keys = keys or {}
        self._metrics_key = metrics_key
        self._limit = limit_s
        self._looks: list[Look] = []

    def run(self) -> dict[str, Any]:
        """The report, also after Ctrl-C. Raises BenchError where the load cannot begin."""
        began = datetime.now()
        try:
            routes = asyncio.run(self._resolve())
            asyncio.run(self._put(routes))
        except KeyboardInterrupt:
            self.results.interrupted = True
        return report(self._endpoint, self._scenario, began, self.results, self._looks)

    async def _resolve(self) -> Routes:
        async with open_session(self._limit) as session:
            self._endpoint = await find_model(session, self._endpoint)
            return await find_routes(session, self._endpoint, self._scenario, self._keys)

    async def _put(self, routes: Routes) -> None:
        results, display = self.results, Display(self._scenario, self.results)
        async with open_session(self._limit) as session:
            base, key = self._endpoint.base, self._metrics_key or self._endpoint.key
            start = time.perf_counter()
            beside = [
                asyncio.create_task(display.run()),
                asyncio.create_task(watch(session, base, key, start, self._looks)),
            ]
            try:
                await run_load(session, self._scenario, routes, results, display.count)
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.wait(beside)


def _wrong(option: str, message: str) -> typer.Exit:
    """Says what is wrong with an option in one plain line, however wide the terminal."""
    typer.echo(f"commons bench: {option}: {message}", err=True)
    return typer.Exit(2)


def _refuse(context: typer.Context, options: Sequence[str]) -> None:
    for name in options:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise _wrong("--" + name.replace("_", "-"), "this does not go with --scenario")


@contextmanager
def _blaming(option: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise _wrong(option, str(error)) from error


def _check_folder(option: str, file: str) -> None:
    """Finds out before the load, not after it, that a file cannot be written."""
    if file and file != "-" and not Path(file).absolute().parent.is_dir():
        raise _wrong(option, f"there is no folder for {file}")


def _tenant_keys(pairs: Sequence[str]) -> dict[str, str]:
    keys = {}
    for pair in pairs:
        tenant, _, key = pair.partition("=")
        if not (tenant and key):
            raise _wrong("--tenant-key", "write TENANT=KEY")
        keys[tenant] = key
    return keys


def _show(numbers: dict[str, Any], json_to: str) -> None:
    # With the JSON on stdout, a program reads there and a person at the terminal reads stderr.
    console = Console(stderr=json_to == "-")
    if numbers["requests"] > numbers["errors"]:
        console.print(turn_table(numbers))
        if len(numbers["by_group"]) > 1:
            console.print(group_table(numbers))
        console.print(total_table(numbers))
    _write(json_to, json.dumps(numbers, indent=2) + "\n")


def _write(file: str, text: str) -> None:
    if file == "-":
        typer.echo(text, nl=False)
    elif file:
        try:
            Path(file).write_text(text, encoding="utf-8")
        except OSError as error:
            typer.echo(f"commons bench: cannot write {file}: {error.strerror}", err=True)
            raise typer.Exit(1) from error
