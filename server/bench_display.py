"""The progress line of a load, drawn on a timer: that costs the same at any token rate."""

from __future__ import annotations

import asyncio
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from .bench_report import seconds
from .bench_results import Results, Spread
from .bench_scenario import Scenario

REFRESH = 0.25  # s between two updates of the progress line


class Display:
    """Shows on standard error how far a load is, where that is a terminal."""

    def __init__(self, scenario: Scenario, results: Results) -> None:
        console = Console(stderr=True)
        self._results = results
        self._requests = scenario.requests()
        self._texts = 0
        self._start = time.perf_counter()
        self._progress = Progress(
            BarColumn(),
            _Done(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        total = self._requests or scenario.duration_s
        unit = "requests" if self._requests else "s"
        self._task = self._progress.add_task("", total=total, numbers="", unit=unit)

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
        results, elapsed = self._results, time.perf_counter() - self._start
        done = len(results.answers) + results.failed
        ttft = Spread.of(reply.ttft for reply in results.replies).p50
        rate = self._texts / max(elapsed, 1e-9)
        numbers = f"~{rate:.0f} tok/s  TTFT {seconds(ttft)}  hits {results.hit_rate():.0%}"
        if not self._requests:
            numbers = f"{done} requests  {numbers}"
        if results.failed:
            numbers += f"  errors {results.failed}"
        completed = done if self._requests else elapsed
        self._progress.update(self._task, completed=completed, numbers=numbers)
        self._progress.refresh()


class _Done(ProgressColumn):
    """How much of the requests, or of the time, is done; what still runs at its end goes over."""

    def render(self, task: Task) -> Text:
        return Text(
            f"{min(task.completed, task.total or 0):.0f}/{task.total:.0f} {task.fields['unit']}"
        )
