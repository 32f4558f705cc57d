"""Server processes under measurement: started, waited for, watched and ended."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from server.bench_client import Endpoint

START_LIMIT = 300.0  # s until a server must answer
STOP_LIMIT = 20.0  # s that a server gets to end by itself
ENDING = (signal.SIGTERM, signal.SIGHUP)
POLL = 0.1  # s between two looks at a server's memory or at its door


class ServerFailed(Exception):
    """A server process that did not start or ended by itself; the text is one line."""


class Kind(NamedTuple):
    """How to start one sort of server, where it says that it is ready, what it calls its model,
    and what is special about its environment."""

    command: Callable[[Path, int], list[str]]
    ready_path: str
    model: str
    environment: Mapping[str, str] = {}


def _commons(model: Path, port: int) -> list[str]:
    beside = Path(sys.executable).with_name("commons")
    command = [str(beside)] if beside.exists() else [sys.executable, "-m", "server.cli"]
    return [*command, "serve", "--model", str(model), "--port", str(port)]


def _first_come(model: Path, port: int) -> list[str]:
    command = [sys.executable, "-m", "deploy.loadtest.first_come", "serve"]
    return [*command, "--model", str(model), "--port", str(port)]


def _mlx_lm(model: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]


KINDS = {
    "commons": Kind(_commons, "/ready", "default"),
    "first_come": Kind(_first_come, "/ready", "default"),
    "mlx_lm": Kind(_mlx_lm, "/health", "default_model"),
}


def openblas() -> Path | None:
    """The OpenBLAS that MLX's CPU backend can be made to use here; None if there is none."""
    machine = platform.machine()
    path = Path(f"/usr/lib/{machine}-linux-gnu/openblas-pthread/libblas.so.3")
    return path if path.exists() else None


def environment() -> dict[str, str]:
    """The environment of every measured process, with OpenBLAS preloaded where there is one."""
    blas = openblas()
    return {**os.environ, "LD_PRELOAD": str(blas)} if blas else dict(os.environ)


class Running:
    """A server that is up."""

    def __init__(self, kind: Kind, process: subprocess.Popen[bytes], port: int) -> None:
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", kind.model)
        self._process = psutil.Process(process.pid)
        self._ended = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def peak_rss(self) -> int:
        """Largest resident memory seen of the process and its children together, in bytes."""
        return self._peak

    def stop_watching(self) -> None:
        """Ends the watching thread."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(POLL)  # one more look when the work is done
            self._peak = max(self._peak, _resident(self._process))


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # a child that just ended; the next look counts again
    return total


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the work inside as Ctrl-C does: servers that were started end, too.

    For the main thread. One signal is enough, and more do not cut the ending short.
    """

    def interrupt(number: int, _: object) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in ENDING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def serving(
    name: str, model: Path, log: Path, more: Sequence[str] = (), kind: Kind | None = None
) -> Iterator[Running]:
    """A fresh server of the kind ``name`` on a free port; ended, with its children, at exit.

    ``more`` are options beside those for model and port; ``kind`` is for one not in KINDS.

    Its output goes to ``log``. Raises ServerFailed where it does not get ready.
    """
    kind, port = kind or KINDS[name], _free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out, ended_by_signals():
        process = subprocess.Popen(
            [*kind.command(model, port), *more],
            env=environment() | dict(kind.environment),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_ready(name, process, f"http://127.0.0.1:{port}{kind.ready_path}", log)
            running = Running(kind, process, port)
            try:
                yield running
            finally:
                running.stop_watching()
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _wait_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else "without a word"
            raise ServerFailed(f"{name} ended with code {process.returncode}: {last}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass  # not up yet
        time.sleep(POLL)
    raise ServerFailed(f"{name} was not ready within {START_LIMIT:.0f} s; see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    members: list[psutil.Process] = []
    if process.poll() is None:
        members = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
    try:
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in members:
        if child.is_running():
            child.kill()
