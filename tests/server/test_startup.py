"""What is printed while the server starts, word for word, whatever the words are."""

from __future__ import annotations

import io

from prometheus_client import CollectorRegistry
from rich.console import Console

from engine.params import SamplingParams
from scheduler.info import ModelConfig, ModelInfo
from scheduler.live import LoadedModel
from scheduler.metrics import Metrics
from scheduler.served import Served
from server.startup import Startup

INFO = ModelInfo(
    "m[1]", "m", 8192, 512, frozenset({2}), "lent", 0, 12_300_000_000, SamplingParams()
)


def models() -> list[Served]:
    """One that is loaded, one that will be, and one that should be and is not."""
    metrics = Metrics(CollectorRegistry())
    configs = [
        ModelConfig("m[1]", "m", keep_loaded=True),
        ModelConfig("later", "m"),
        ModelConfig("broken", "m", keep_loaded=True),
    ]
    found = [Served(config, metrics.model(config.name)) for config in configs]
    found[0].facts = LoadedModel(INFO, None, 1)  # type: ignore[arg-type]  # nothing is tokenised
    return found


def started(*, terminal: bool) -> tuple[Startup, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=40, color_system=None)
    return Startup(console), out


def test_lines() -> None:
    startup, out = started(terminal=False)
    startup.progress("reading [/bold] x[red]")
    startup.note("[dim]note")
    startup.ready(models(), "http://[::1]:8000")
    startup.failed("no [/such] thing: " + "x" * 100)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("mlx-commons ")
    assert lines[1].endswith(" s  reading [/bold] x[red]")
    assert lines[2].strip() == "[dim]note"
    assert lines[3].strip() == "m[1]: context 8,192 tokens, attention lent, KV memory 12.3 GB"
    assert lines[4].strip() == "later: loaded on demand"
    assert lines[5].strip() == "broken: cannot be loaded"
    assert lines[6].strip().startswith("ready at http://[::1]:8000 after ")
    assert lines[7] == "commons serve: no [/such] thing: " + "x" * 100  # one line, however long
    assert len(lines) == 8


def test_terminal_shows_the_step_at_work() -> None:
    startup, out = started(terminal=True)
    startup.progress("reading [/bold]")
    assert "reading [/bold]" in out.getvalue()
    startup.ready(models(), "http://127.0.0.1:8000")
    assert "ready at http://127.0.0.1:8000" in out.getvalue()
