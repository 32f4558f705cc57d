"""The real coding clients against this server: ``make clients``.

Installs Claude Code, Codex and OpenCode from npm, unless they are there, and lets each ask the
embedded model headless, in an empty home and with an empty environment: once alone, then four at
once. Prints what was answered and how much of the four prompts was reused; fails where a client
gets no answer, where the model calls a tool, or where less than 80% was reused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from engine import embedded

from .servers import ended_by_signals, serving

INTERRUPTED = 130  # exit status
LEAST_HITS = 0.8
MOST_TOKENS = 300  # of an answer
TOGETHER = 4
LIMIT = 1200.0  # s that a client gets; its prompt has up to 33,000 tokens
CONTEXT = 65536
SETTINGS = '[aliases]\n"claude-*" = "commons-tiny"\n'
LONG = 5_000  # tokens of a prompt that has the question; others are for titles and the like
LEAVING = 30.0  # s until the server has noticed that a client is gone
RUNNING = re.compile(r"^commons_requests_(?:running|waiting)\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Client(NamedTuple):
    """One client: its package and program, what stands in its home, its environment, its command.

    ``environment`` and ``files`` are made of the server's address, ``command`` of a question.
    """

    package: str
    program: str
    environment: Callable[[str], dict[str, str]]
    files: Callable[[str], dict[str, str]]
    command: Callable[[str], list[str]]


class Told(NamedTuple):
    """A request's tokens."""

    prompt: int
    cached: int
    generated: int


class Answer(NamedTuple):
    """What a client printed, its exit status, and the seconds that it took."""

    text: str
    status: int
    seconds: float


def _codex_files(base: str) -> dict[str, str]:
    settings = {"name": "commons", "base_url": f"{base}/v1", "wire_api": "responses"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    head = ['model = "commons-tiny"', 'model_provider = "commons"', "[model_providers.commons]"]
    return {".codex/config.toml": "\n".join([*head, *lines]) + "\n"}


def _opencode_files(base: str) -> dict[str, str]:
    model = {"name": "commons-tiny", "limit": {"context": CONTEXT, "output": 4096}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "commons",
        "options": {"baseURL": f"{base}/v1", "apiKey": "none"},
        "models": {"commons-tiny": model},
    }
    name = "commons/commons-tiny"
    settings = {"provider": {"commons": provider}, "model": name, "small_model": name}
    return {".config/opencode/opencode.json": json.dumps(settings)}


CLIENTS = {
    "claude": Client(
        "@anthropic-ai/claude-code",
        "claude",
        lambda base: {"ANTHROPIC_BASE_URL": base, "ANTHROPIC_API_KEY": "none"},
        lambda base: {},
        lambda question: ["-p", question],
    ),
    "codex": Client(
        "@openai/codex",
        "codex",
        lambda base: {},
        _codex_files,
        lambda question: ["exec", "--skip-git-repo-check", question],
    ),
    "opencode": Client(
        "opencode-ai",
        "opencode",
        lambda base: {},
        _opencode_files,
        lambda question: ["run", question],
    ),
}


def install(clients: Sequence[Client], packages: Path) -> None:
    """Installs what is not there yet. Raises CalledProcessError."""
    missing = [c.package for c in clients if not (packages / "node_modules" / c.package).exists()]
    if missing:
        packages.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(packages)]
        subprocess.run([*command, *missing], check=True)


class Asked:
    """The client processes that have been started, each by a thread of its own."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._over = False
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], place: Path, env: dict[str, str]) -> tuple[str, str, int]:
        """What a command printed to both streams, and its exit status. Raises TimeoutExpired."""
        process = subprocess.Popen(
            command,
            cwd=place,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with self._lock:
            self._processes.append(process)
            over = self._over
        try:
            if over:
                _kill(process)
            out, err = process.communicate(timeout=LIMIT)
        finally:
            _kill(process)
        return out, err, process.returncode

    def kill(self) -> None:
        """Ends all, with whatever they have started, and those that are just being started."""
        with self._lock:
            self._over = True
            for process in self._processes:
                _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def ask(
    client: Client, packages: Path, place: Path, base: str, question: str, asked: Asked
) -> Answer:
    """One question, from a home that is empty but for the client's settings."""
    home, work = place / "home", place / "work"
    work.mkdir(parents=True, exist_ok=True)
    for name, text in client.files(base).items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
    home.mkdir(parents=True, exist_ok=True)
    program = packages / "node_modules" / ".bin" / client.program
    node = Path(shutil.which("node") or "/usr/bin/node").parent
    began = time.monotonic()
    command = [str(program.absolute()), *client.command(question)]
    env = {"HOME": str(home), "PATH": f"{node}:/usr/bin:/bin"} | client.environment(base)
    out, err, status = asked.run(command, work, env)
    text = ANSI.sub("", out + err if status else out).strip()
    return Answer(text, status, time.monotonic() - began)


class Requests:
    """What the server's log says of the requests that it has answered."""

    def __init__(self, log: Path, base: str) -> None:
        self._log = log
        self.base = base
        self._seen = 0  # lines

    def new(self) -> list[Told]:
        """Those since the last time, once none runs any more. Raises TimeoutError."""
        deadline = time.monotonic() + LEAVING
        while self._running():
            if time.monotonic() > deadline:
                raise TimeoutError("requests of clients that have ended still run")
            time.sleep(0.1)
        lines = self._log.read_text(encoding="utf-8").splitlines()
        new, self._seen = lines[self._seen :], len(lines)
        fields = map(json.loads, new)
        return [
            Told(f["prompt_tokens"], f.get("cached_tokens", 0), f["generated_tokens"])
            for f in fields
            if "generated_tokens" in f
        ]

    def _running(self) -> bool:
        with urllib.request.urlopen(f"{self.base}/metrics") as response:
            return any(float(value) for value in RUNNING.findall(response.read().decode()))


def run(
    name: str, packages: Path, place: Path, requests: Requests, question: str, *, apart: bool
) -> bool:
    """One client, alone and four at once; whether all got an answer."""
    client, good, asked = CLIENTS[name], True, Asked()

    def one(number: int) -> Answer:
        # Clients write the paths of home and folder into their prompts.
        own = f"{name}-{number}" if apart else name
        return ask(client, packages, place / own, requests.base, question, asked)

    for label, count in (("alone", 1), ("four at once", TOGETHER)):
        with ThreadPoolExecutor(TOGETHER) as pool:
            try:
                answers = list(pool.map(one, range(count)))
            except KeyboardInterrupt:
                asked.kill()  # or the pool would wait for their answers
                raise
        told = requests.new()
        asking = [each for each in told if each.prompt >= LONG]
        prompt = sum(each.prompt for each in asking)
        hits = sum(each.cached for each in asking) / max(1, prompt)
        longest = max((each.generated for each in asking), default=0)
        seconds = max(answer.seconds for answer in answers)
        print(
            f"{name:9} {label:13} {seconds:6.1f} s, {prompt / max(1, len(asking)):,.0f} tokens a "
            f"prompt, {hits:6.1%} reused, at most {longest} tokens an answer; "
            f"{len(told) - len(asking)} requests for something else",
            flush=True,
        )
        for answer in answers:
            print(f"          [{answer.status}] {answer.text[-200:]!r}", flush=True)
        good &= all(not a.status and a.text for a in answers)
        good &= len(asking) == count and longest <= MOST_TOKENS
        good &= label == "alone" or hits >= LEAST_HITS
    return good


def main() -> None:
    """Runs the clients named, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", default=list(CLIENTS), help=", ".join(CLIENTS))
    parser.add_argument("--packages", type=Path, default=Path(".clients"))
    parser.add_argument("--question", default="What is a tree?")
    parser.add_argument(
        "--apart", action="store_true", help="each of the four in a home and folder of its own"
    )
    options = parser.parse_args()
    with ended_by_signals(), tempfile.TemporaryDirectory() as folder:
        install([CLIENTS[name] for name in options.clients], options.packages)
        place = Path(folder)
        settings = place / "commons.toml"
        settings.write_text(SETTINGS, encoding="utf-8")
        log = place / "requests.log"
        more = ("--config", str(settings), "--log-json", "--log-file", str(log))
        with serving("commons", embedded.path(), place / "server.log", more) as server:
            requests = Requests(log, server.endpoint.base.removesuffix("/v1"))
            good = [
                run(name, options.packages, place, requests, options.question, apart=options.apart)
                for name in options.clients
            ]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
