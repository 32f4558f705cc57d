"""How the process begins and ends: signals, exit codes, a failing engine, failing starts."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from scheduler.info import ServiceConfig
from server.config import ServerConfig
from server.launch import run

from .faulty import SECRET
from .process import PATIENCE, Server
from .support import completion, events, idle, poll, scrape

ROUTE = "/v1/completions"
FAULTY = (sys.executable, "-m", "tests.server.faulty")


@contextmanager
def connected(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        yield http


def drained(http: httpx.Client) -> dict[str, Any]:
    """The error of a refused request, asked for until the server refuses them."""
    for _ in range(2000):
        if http.get("/ready").status_code == 503:
            break
    response = http.post(ROUTE, json=completion(1))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    error: dict[str, Any] = response.json()["error"]
    return error


def test_sigterm_lets_running_requests_finish(tiny: str) -> None:
    with Server("--model", tiny) as server, connected(server.ready()) as http:
        body = completion(2000, stream=True)
        with http.stream("POST", ROUTE, json=body) as response:
            data = events(response.iter_lines())
            seen = [next(data)]
            server.signal(signal.SIGTERM)
            server.until("stopping: 1 requests left")
            assert drained(http)["code"] == "not_ready"
            assert http.get("/ready").json()["status"] == "draining"
            assert http.get("/livez").status_code == 200
            assert http.get("/health").status_code == 200
            assert scrape(http)("admission_rejections_total", reason="draining") == 1
            seen += data
        assert seen[-1] == "[DONE]"
        assert json.loads(seen[-2])["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0


@pytest.mark.parametrize("again", [True, False], ids=["second signal", "time is up"])
def test_drain_can_be_cut_short(tiny: str, again: bool) -> None:
    limit = "600" if again else "0"
    with (
        Server("--model", tiny, "--drain-timeout", limit) as server,
        connected(server.ready()) as http,
    ):
        with http.stream("POST", ROUTE, json=completion(8000, stream=True)) as response:
            data = events(response.iter_lines())
            seen = [next(data)]
            server.signal(signal.SIGINT)
            server.until("stopping")
            if again:
                server.signal(signal.SIGTERM)
            seen += data
        assert "[DONE]" not in seen
        error = json.loads(seen[-1])["error"]
        assert (error["type"], error["code"]) == ("server_error", "engine_error")
        assert "shutting down" in error["message"]
        assert len(seen) < 8000
        assert server.wait() == 0


def test_failing_step_fails_every_request_and_ends_the_process(tiny: str) -> None:
    with Server("--model", tiny, command=FAULTY) as server, connected(server.ready()) as http:
        with http.stream("POST", ROUTE, json=completion(8000, stream=True)) as response:
            data = events(response.iter_lines())
            seen = [next(data)]
            whole = http.post(ROUTE, json=completion(8000))  # the second row, at which it fails
            seen += data
        assert server.wait() == 1
    assert "[DONE]" not in seen
    assert whole.status_code == 503
    for error in (json.loads(seen[-1])["error"], whole.json()["error"]):
        assert (error["type"], error["code"]) == ("server_error", "engine_error")
        assert SECRET not in error["message"]
    said = f"the engine failed: RuntimeError: {SECRET}"
    assert len([line for line in server.lines if said in line]) == 1


def failed(server: Server) -> str:
    """The one line with which a server that could not start ended."""
    assert server.wait() == 1
    own = [line for line in server.lines if line.startswith("commons serve: ")]
    assert server.lines[-1:] == own
    assert not any("Traceback" in line for line in server.lines)
    return own[0]


def test_port_in_use(tiny: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Server("--model", tiny, "--port", port, port=False) as server:
            line = failed(server)
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


def test_unknown_host(capfd: pytest.CaptureFixture[str]) -> None:
    config = ServerConfig(ServiceConfig("nowhere", "nowhere"), host="256.0.0.1", port=0)
    assert run(config) == 1
    assert "cannot listen on 256.0.0.1:0" in capfd.readouterr().err


def test_no_model(tmp_path: Path) -> None:
    path = str(tmp_path / "[/bold]")  # no markup, although it looks like it
    with Server("--model", path) as server:
        assert f"no such directory: {path}" in failed(server)


def test_damaged_weights(tiny: str, tmp_path: Path) -> None:
    damaged = shutil.copytree(tiny, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with Server("--model", str(damaged)) as server:
        assert f"cannot load {damaged}" in failed(server)


def test_ready_line_comes_when_requests_are_taken(tiny: str) -> None:
    with Server("--model", tiny, "--served-model-name", "other", "--no-prefix-cache") as server:
        with connected(server.ready()) as http:
            assert http.get("/ready").status_code == 200
            body = completion(3, model="other", prompt=list(range(5, 105)))
            cached = [
                http.post(ROUTE, json=body).json()["usage"]["prompt_tokens_details"]
                for _ in range(2)
            ]
            assert cached == [{"cached_tokens": 0}] * 2
            metrics = poll(http, idle)
            assert metrics("requests_total", model="other", finish_reason="length") == 2
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert any("stopping: 0 requests left" in line for line in server.lines)
