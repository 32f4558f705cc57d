"""What a person at the terminal sees while the server starts."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

if TYPE_CHECKING:
    from scheduler.served import Served

logger = logging.getLogger("commons.server")


class Startup:
    """Shows each step as it begins; on a terminal with a moving sign and the time it takes.

    With ``logged`` all of it goes to the log instead, where programs read what comes out.
    ``progress`` may be called from the engine thread.
    """

    def __init__(self, console: Console | None = None, *, logged: bool = False) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._logged = logged
        self._moving = self._console.is_terminal and not logged
        self._began = time.perf_counter()
        self._status = self._console.status("starting", spinner="dots")
        version = importlib.metadata.version("mlx-commons")
        self._say(f"[bold]mlx-commons[/bold] {version}")
        if self._moving:
            self._status.start()

    def progress(self, text: str) -> None:
        """The next step."""
        elapsed = time.perf_counter() - self._began
        self._say(f"  [dim]{elapsed:5.1f} s[/dim]  {escape(text)}")
        if self._moving:
            self._status.update(escape(text))

    def ready(self, models: Iterable[Served], url: str) -> None:
        """The end: what is served, and where."""
        self._status.stop()
        seconds = time.perf_counter() - self._began
        for served in models:
            self._say(f"  {escape(served.name)}: {_summary(served)}")
        self._say(f"  ready at [bold]{url}[/bold] after {seconds:.1f} s")

    def failed(self, line: str) -> None:
        """The end, if it was not reached."""
        self._status.stop()
        self._say(f"[bold red]commons serve:[/bold red] {escape(line)}", logging.ERROR)

    def note(self, text: str) -> None:
        """Anything worth a line later on."""
        self._say(f"  {escape(text)}", logging.WARNING)

    def _say(self, markup: str, level: int = logging.INFO) -> None:
        if self._logged:
            logger.log(level, "%s", Text.from_markup(markup).plain.strip())
        else:
            self._console.print(markup, soft_wrap=True)


def _summary(served: Served) -> str:
    """What there is to say of a model."""
    if served.facts is None:
        return "cannot be loaded" if served.config.keep_loaded else "loaded on demand"
    info = served.facts.info
    return (
        f"context {info.max_model_len:,} tokens, attention {info.attention}, "
        f"KV memory {info.kv_memory / 1e9:.1f} GB"
    )
