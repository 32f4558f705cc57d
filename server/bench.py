"""``commons bench``: many agents with growing conversations against an OpenAI-compatible endpoint.

A process of its own with one event loop. Knows of the server what any client knows.

The JSON report (``--json``) holds the load (``base``, ``model``, ``agents``, ``turns``,
``system_tokens``, ``user_tokens``, ``max_tokens``, ``private``, ``stagger_s``, ``seed``) and

- ``wall_s``: seconds from the first request to the end of the last;
- ``interrupted``: whether Ctrl-C ended it early;
- ``requests``, ``errors``, ``error_messages`` (message to count), ``uncounted_replies``
  (replies for which the server gave no usage);
- ``prompt_tokens``, ``cached_tokens``, ``completion_tokens``: sums of the server's usage;
- ``hit_rate``: cached by prompt tokens; ``output_tokens_per_s``: completion tokens by wall;
- ``ttft_s``, ``itl_s``, ``pause_s``, each ``{"p50", "p95", "max"}`` or nulls: seconds to the
  first text of a reply; a reply's mean seconds per further token; between two arrivals of text;
- ``by_turn``: a list of ``turn``, ``replies`` and for these the token sums, ``hit_rate`` and
  ``ttft_s``.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.bench_client import BenchError, Endpoint, open_session
from server.bench_load import Load, find_model, run_load
from server.bench_report import Results, Spread, seconds, total_table, turn_table

REFRESH = 0.25  # s between two updates of the progress line
INTERRUPTED = 130  # exit code, as shells use it for Ctrl-C


def bench(
    base: Annotated[str, typer.Option(help="Where the API is.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str, typer.Option(help="Model id; 'default' is the first one that the server lists.")
    ] = "default",
    agents: Annotated[int, typer.Option(min=1, help="Conversations held at once.")] = 16,
    turns: Annotated[int, typer.Option(min=1, help="Questions per conversation.")] = 3,
    system_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the system prompt, roughly.")
    ] = 4000,
    user_tokens: Annotated[int, typer.Option(min=1, help="Length of a question, roughly.")] = 150,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of a reply at most.")] = 48,
    private: Annotated[
        bool, typer.Option("--private", help="A system prompt of its own for each agent.")
    ] = False,
    stagger: Annotated[
        float, typer.Option(min=0, help="Seconds between the starts of two agents.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed makes other text.")] = 0,
    key: Annotated[str, typer.Option(help="API key, where the server wants one.")] = "",
    json_to: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write all numbers; - for stdout.")
    ] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 900.0,
) -> None:
    """Many agents with one system prompt and growing conversations, against any endpoint."""
    load = Load(
        agents=agents,
        turns=turns,
        system_tokens=system_tokens,
        user_tokens=user_tokens,
        max_tokens=max_tokens,
        private=private,
        stagger=stagger,
        seed=seed,
    )
    endpoint, results = Endpoint(base.rstrip("/"), model, key), Results(turns)
    try:
        endpoint = asyncio.run(_resolve(endpoint, timeout))
        asyncio.run(_run(endpoint, load, results, timeout))
    except BenchError as error:
        typer.echo(f"commons bench: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        results.interrupted = True
    _show(report(endpoint, load, results), results, json_to)
    if failure := results.failure():
        typer.echo(f"commons bench: {failure}", err=True)
    if results.interrupted or results.failed:
        raise typer.Exit(INTERRUPTED if results.interrupted else 1)


def report(endpoint: Endpoint, load: Load, results: Results) -> dict[str, Any]:
    """The JSON report as described at the top of this file."""
    settings = asdict(load)
    settings["stagger_s"] = settings.pop("stagger")
    return {"base": endpoint.base, "model": endpoint.model, **settings, **results.json()}


async def _resolve(endpoint: Endpoint, limit_s: float) -> Endpoint:
    async with open_session(limit_s) as session:
        return await find_model(session, endpoint)


async def _run(endpoint: Endpoint, load: Load, results: Results, limit_s: float) -> None:
    display = _Display(load, results)
    async with open_session(limit_s) as session:
        drawing = asyncio.create_task(display.run())
        try:
            await run_load(session, endpoint, load, results, display.count)
        finally:
            drawing.cancel()
            await asyncio.wait([drawing])


def _show(numbers: dict[str, Any], results: Results, json_to: str) -> None:
    # With the JSON on stdout, a program reads there and a person at the terminal reads stderr.
    console = Console(stderr=json_to == "-")
    if results.replies:
        console.print(turn_table(results))
        console.print(total_table(results))
    text = json.dumps(numbers, indent=2)
    if json_to == "-":
        typer.echo(text)
    elif json_to:
        try:
            Path(json_to).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            typer.echo(f"commons bench: cannot write {json_to}: {error.strerror}", err=True)
            raise typer.Exit(1) from error


class _Display:
    """The progress line; drawn on a timer so that drawing costs the same at any token rate."""

    def __init__(self, load: Load, results: Results) -> None:
        console = Console(stderr=True)
        self._results = results
        self._texts = 0
        self._start = time.perf_counter()
        self._progress = Progress(
            TextColumn("turns"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=load.agents * load.turns, numbers="")

    def count(self, now: float) -> None:
        """Takes note of one arrival of text."""
        self._texts += 1

    async def run(self) -> None:
        """Draws until cancelled."""
        with self._progress:
            try:
                while True:
                    self._draw()
                    await asyncio.sleep(REFRESH)
            finally:
                self._draw()

    def _draw(self) -> None:
        replies = self._results.replies
        rate = self._texts / max(time.perf_counter() - self._start, 1e-9)
        ttft = Spread.of(r.ttft for r in replies).p50
        numbers = f"~{rate:.0f} tok/s  TTFT {seconds(ttft)}  hits {self._results.hit_rate():.0%}"
        if self._results.failed:
            numbers += f"  errors {self._results.failed}"
        self._progress.update(self._task, completed=len(replies), numbers=numbers)
        self._progress.refresh()
