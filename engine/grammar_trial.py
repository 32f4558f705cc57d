"""Tries grammars in processes that can be killed, forked off a helper that has the compiler loaded.

Some few lines of a schema can keep the compiler busy for hours, and a thread of the server's own
process could not be stopped. This file is also the helper's script, which a trial reaches through
a socket of its own. Any thread may ask.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MOST_CPU = 0.4  # seconds; a grammar from a person's hand takes some milliseconds
MOST_WALL = 0.7  # seconds, where the machine is busy otherwise
PATIENCE = 5.0  # seconds, with the helper's start
MOST_BYTES = 4 << 30  # of address space
TOO_COSTLY = "it takes too long to compile"
TOKENS = re.compile(r"<\[[\d\s,^-]+\]>")  # by id, of which a trial knows only those of bytes
UNIT = 1024 if sys.platform == "linux" else 1  # of what the system says of a process's memory

# About 10 ms for one mask and 50 MB for one grammar, whatever its author thought of. What exceeds
# that makes the matcher fail, and with it its row alone.
LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    precompute_large_lexemes=False,  # whose time would depend on the vocabulary
    verbose_errors=False,
)


class Verdict(NamedTuple):
    """What is ``wrong`` with a grammar, "" for nothing, and the bytes that it takes.

    One that is not ``final`` might turn out otherwise on a less busy machine.
    """

    wrong: str
    nbytes: int = 0
    final: bool = True


class Trials:
    """The helper, which is started at first use and ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def verdict(self, source: str) -> Verdict:
        """Compiles a grammar in a process of its own, in bounded time."""
        for _ in range(2):  # something else may have killed it, or the helper
            began, answer = time.monotonic(), b""
            with contextlib.suppress(OSError):
                answer = self._ask(source.encode())
            if answer:
                size, _, wrong = answer.decode("utf-8", "replace").partition("\n")
                return Verdict(wrong, int(size))
            took = time.monotonic() - began
            if took >= MOST_CPU:
                return Verdict(TOO_COSTLY, final=took < MOST_WALL)
        return Verdict(TOO_COSTLY, final=False)

    def close(self) -> None:
        """Ends the helper."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                self._process.wait()
            self._process = self._control = None

    def _ask(self, source: bytes) -> bytes:
        """The answer to a trial; nothing where its process was killed."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._lock:
                socket.send_fds(self._helper(), [b"."], [theirs.fileno()])
            ours.settimeout(PATIENCE)
            ours.sendall(source)
            ours.shutdown(socket.SHUT_WR)
            with ours.makefile("rb") as answer:
                return answer.read()

    def _helper(self) -> socket.socket:
        if self._control is None or self._process is None or self._process.poll() is not None:
            if self._control is not None:
                self._control.close()
            self._control, theirs = socket.socketpair()
            with theirs:
                number = theirs.fileno()
                script = [sys.executable, "-I", str(Path(__file__)), str(number)]
                self._process = subprocess.Popen(
                    script, pass_fds=[number], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
        return self._control


TRIALS = Trials()
atexit.register(TRIALS.close)


def main() -> None:
    """Forks a process for each socket that comes, until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal; the server may have work left
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizer = LLTokenizer("byte")
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, sockets, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=sockets[0]) as trial, contextlib.suppress(OSError):
            if not os.fork():
                control.close()
                _try(tokenizer, trial)


def _try(tokenizer: LLTokenizer, trial: socket.socket) -> None:
    """Answers and ends the process, which ends by a signal where it takes too much."""
    try:
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU)
        signal.setitimer(signal.ITIMER_REAL, MOST_WALL)
        if sys.platform == "linux":  # elsewhere, address space says nothing
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        with trial.makefile("rb") as given:
            source = given.read().decode()
        source = TOKENS.sub("<[0]>", source)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        trial.sendall(f"{grown * UNIT}\n{matcher.get_error()}".encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
