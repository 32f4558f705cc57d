"""Processes under test: started, read, signalled, ended."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
COMMONS = (sys.executable, "-m", "server.cli")
READY = re.compile(r"ready at (http://\S+)")
PATIENCE = 60.0  # seconds; no test depends on it unless it fails


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings for the server, and with ``more``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COMMONS_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(more or {})


def commons(*args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end."""
    return subprocess.run(
        [*COMMONS, *args],
        cwd=ROOT,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


class Program:
    """A process whose output is read line by line; use it as a context manager."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """Reads the output up to a line that has ``pattern``."""
        while True:
            try:
                line = self._queue.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no such line; it said {self.lines}") from None
            assert line is not None, f"it ended; it said {self.lines}"
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code; all output is in ``lines`` then."""
        code = self.process.wait(PATIENCE)
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Server(Program):
    """``commons serve`` on a free port."""

    def __init__(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMONS,
        port: bool = True,
    ) -> None:
        free_port = ("--port", "0") if port else ()
        super().__init__([*command, "serve", *free_port, *args], environment(env))
        self.url = ""

    def ready(self) -> Server:
        """Waits until the server says where it listens."""
        self.url = self.until(READY)[1]
        return self
