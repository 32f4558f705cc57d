"""``make clients``: what it starts ends with it. The clients themselves are not run here."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from deploy.loadtest.clients import Asked
from tests.server.process import PATIENCE

COMMAND = "sleep 600 & echo $! > up; wait"


def test_clients_that_run_end_with_whoever_started_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "up")
    asked = Asked()
    with ThreadPoolExecutor(1) as pool:
        command = ["sh", "-c", COMMAND]
        running = pool.submit(asked.run, command, tmp_path, {"PATH": os.environ["PATH"]})
        child = psutil.Process(int((tmp_path / "up").read_text()))  # waits for it to be written
        asked.kill()
        assert running.result(PATIENCE)[2] == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(PATIENCE)


def test_what_a_client_says_and_how_it_ends(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    assert Asked().run(command, tmp_path, {"PATH": os.environ["PATH"]}) == ("out\n", "err\n", 3)


def test_a_client_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Asked().run([str(tmp_path / "absent")], tmp_path, {})
