"""``make compare``, and the locust file."""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from deploy.loadtest import compare, peers
from engine import embedded
from server.bench_options import AgentOptions
from server.bench_scenario import changed
from tests.server.process import ROOT


def broken(folder: Path, model: Path, port: int) -> list[str]:
    return [sys.executable, "-c", "raise SystemExit('no Metal here')"]


def there(name: str, folder: Path) -> None:
    """What an earlier run has left."""
    binary = folder / name / "bin"
    binary.mkdir(parents=True)
    (binary / "python").symlink_to(sys.executable)
    (folder / name / ".installed").touch()


def test_what_cannot_be_measured_is_left_out_with_the_reason(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(peers.PEERS, "unstartable", peers.Peer("pytest", broken))
    monkeypatch.setitem(peers.PEERS, "uninstallable", peers.Peer("nothing", broken))
    there("unstartable", tmp_path)
    (tmp_path / "uninstallable").write_text("in the way of a folder")
    scenario = changed(
        AgentOptions(2, 2, 60, 20, 4).as_scenario(), name="small", about="Two agents."
    )
    servers = ["commons", "unstartable", "uninstallable"]
    results = compare.compare(scenario, servers, embedded.path(), tmp_path, tmp_path)

    ours = results["commons"]
    assert (ours["requests"], ours["errors"]) == (4, 0) and ours["peak_rss_mib"] > 10
    assert "small" in (tmp_path / "commons.html").read_text()
    assert results["unstartable"]["failure"].endswith("ended with code 1: no Metal here")
    assert results["uninstallable"]["failure"].startswith("uninstallable cannot be installed here")
    assert json.loads((tmp_path / "numbers.json").read_text())["results"] == results
    lines = compare.text(scenario, results).splitlines()
    assert lines[0] == "Two agents."
    (requests,) = [line for line in lines if line.startswith("|  | requests |")]
    assert requests == "|  | requests | 4 | failed | failed |"
    assert f"- unstartable: {results['unstartable']['failure']}" in lines


def test_a_server_that_does_not_tell_what_it_reuses_is_shown_so() -> None:
    scenario = AgentOptions(1, 1, 10, 10, 1).as_scenario()
    spread = {"p50": 1.0, "p95": None, "max": 2.0}
    numbers: dict[str, Any] = {
        "requests": 3, "errors": 0, "wall_s": 1.0, "ttft_s": spread, "itl_s": spread,
        "by_turn": [{"ttft_s": spread}], "output_tokens_per_s": 3.0, "hit_rate": 0.25,
        "peak_rss_mib": 2048,
    }  # fmt: skip
    results = {
        "told": {**numbers, "replies_without_cached": 0},
        "untold": {**numbers, "replies_without_cached": 3},
    }
    table = compare.text(scenario, results)
    assert "| prompt tokens reused | 25% | not told |" in table
    assert "| TTFT p50 / p95 / max, s | 1.00 / – / 2.00 |" in table
    assert "| peak resident memory, MiB | 2,048 | 2,048 |" in table


@pytest.mark.parametrize("args", [["--servers", "nope"], ["--scenario", "nope"]])
def test_a_wrong_argument_is_refused(capsys, args: list[str]) -> None:
    with pytest.raises(SystemExit):
        compare.parse(args)
    assert "'nope'" in capsys.readouterr().err


def test_the_default_is_every_server_on_a_scenario_of_many_agents() -> None:
    chosen = compare.parse([])
    assert chosen.servers == ["commons", "mlx_lm", "vllm_mlx", "rapid_mlx"]
    assert chosen.scenario.name == "agent-swarm"


@pytest.fixture
def locustfile(monkeypatch) -> dict[str, Any]:
    """What the locust file defines; locust itself need not be installed."""
    locust = types.ModuleType("locust")
    listener = types.SimpleNamespace(add_listener=lambda function: function)
    locust.HttpUser = object  # type: ignore[attr-defined]
    locust.between = lambda low, high: (low, high)  # type: ignore[attr-defined]
    locust.events = types.SimpleNamespace(init_command_line_parser=listener)  # type: ignore[attr-defined]
    locust.task = lambda function: function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "locust", locust)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return runpy.run_path(str(ROOT / "deploy" / "loadtest" / "locustfile.py"))


def test_the_locust_file_reads_streams(locustfile) -> None:
    pieces = locustfile["pieces"]
    lines = [
        b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}',
        b"",
        b": a comment",
        b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}',
        b'data: {"choices": [{"delta": {"content": "yes"}}]}',
        b"data: [DONE]",
        b"data: never read",
    ]
    assert list(pieces(iter(lines))) == ["hm", "yes"]
    with pytest.raises(ValueError, match="broke off"):
        list(pieces(iter(lines[:3])))
    with pytest.raises(ValueError, match="engine died"):
        list(pieces(iter([b'data: {"error": {"message": "engine died"}}'])))
    assert (locustfile["Agent"].weight, locustfile["OneOff"].weight) == (7, 1)
