"""What a person at the terminal sees while the server starts."""

from __future__ import annotations

import importlib.metadata
import logging
import time

from rich.console import Console
from rich.markup import escape

from scheduler.info import ModelInfo

logger = logging.getLogger("commons.server")


class Startup:
    """Shows each step as it begins; on a terminal with a moving sign and the time it takes.

    ``progress`` may be called from the engine thread.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._began = time.perf_counter()
        self._status = self._console.status("starting", spinner="dots")
        version = importlib.metadata.version("mlx-commons")
        self._console.print(f"[bold]mlx-commons[/bold] {version}")
        if self._console.is_terminal:
            self._status.start()

    def progress(self, text: str) -> None:
        """The next step."""
        elapsed = time.perf_counter() - self._began
        self._console.print(f"  [dim]{elapsed:5.1f} s[/dim]  {escape(text)}", soft_wrap=True)
        if self._console.is_terminal:
            self._status.update(escape(text))

    def ready(self, info: ModelInfo, url: str) -> None:
        """The end: what is served, and where."""
        self._status.stop()
        seconds = time.perf_counter() - self._began
        self._console.print(
            f"  {escape(info.name)}: context {info.max_model_len:,} tokens, "
            f"attention {info.attention}, KV memory {info.kv_memory / 1e9:.1f} GB",
            soft_wrap=True,
        )
        self._console.print(f"  ready at [bold]{url}[/bold] after {seconds:.1f} s", soft_wrap=True)

    def failed(self, line: str) -> None:
        """The end, if it was not reached."""
        self._status.stop()
        self._console.print(f"[bold red]commons serve:[/bold red] {escape(line)}", soft_wrap=True)

    def note(self, text: str) -> None:
        """Anything worth a line later on."""
        self._console.print(f"  {escape(text)}", soft_wrap=True)
