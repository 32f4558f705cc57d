"""A server process under test: started, read, signalled, ended."""

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


def end(process: subprocess.Popen[str], reader: threading.Thread) -> None:
    """Ends a process at once, and the thread that reads what it says."""
    process.kill()
    process.wait()
    reader.join()
    for said in (process.stdout, process.stderr):
        if said is not None:
            said.close()


class Server:
    """``commons serve`` on a free port; use it as a context manager."""

    def __init__(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMONS,
        port: bool = True,
    ) -> None:
        free_port = ("--port", "0") if port else ()
        self.process = subprocess.Popen(
            [*command, "serve", *free_port, *args],
            cwd=ROOT,
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = ""
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
            assert line is not None, f"the server ended; it said {self.lines}"
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def ready(self) -> Server:
        """Waits until the server says where it listens."""
        self.url = self.until(READY)[1]
        return self

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code; all output is in ``lines`` then."""
        code = self.process.wait(PATIENCE)
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self.process, self._reader)
