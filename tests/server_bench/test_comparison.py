"""The comparison with other servers, against a small endpoint on a socket."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer

from deploy.loadtest import random_model, servers
from deploy.loadtest.comparison import ROWS, markdown
from deploy.loadtest.scenarios import ENDLESS, QUICK, SCENARIOS, Numbers
from server.bench_client import Endpoint, open_session
from server.bench_text import make_text

from .endpoint import TinyEndpoint


def measure(endpoint: TinyEndpoint, scenario: str) -> Numbers:
    async def once() -> Numbers:
        async with open_session(60) as session:
            return await SCENARIOS[scenario](session, Endpoint(endpoint.base, "tiny"), True)

    return asyncio.run(once())


@pytest.mark.parametrize(("scenario", "requests"), [("agents", 12), ("crowd", 16), ("private", 6)])
def test_scenarios_of_agents_count_like_bench(endpoint, scenario, requests) -> None:
    numbers = measure(endpoint, scenario)
    assert (numbers["requests"], numbers["errors"]) == (requests, 0) == (len(endpoint.bodies), 0)
    assert numbers["prompt_tokens"] == sum(u["prompt_tokens"] for u in endpoint.usages)
    systems = {b["messages"][0]["content"] for b in endpoint.bodies}
    assert len(systems) == (2 if scenario == "private" else 1)


def test_a_growing_conversation_starts_with_what_was_said(endpoint) -> None:
    numbers = measure(endpoint, "growth")
    assert len(endpoint.bodies) == 18
    for size, usages in (("10k", endpoint.usages[:9]), ("28k", endpoint.usages[9:])):
        turns = numbers[size]["turns"]
        assert [t["prompt_tokens"] for t in turns] == [u["prompt_tokens"] for u in usages]
        for before, turn in itertools.pairwise(turns):
            assert turn["cached_tokens"] >= before["prompt_tokens"] < turn["prompt_tokens"]
        assert numbers[size]["cold_ttft_s"] == turns[0]["ttft_s"] > 0


def test_the_stall_scenario_reads_streams_beside_cold_prompts(endpoint) -> None:
    numbers = measure(endpoint, "stall")
    streams = [b for b in endpoint.bodies if b["max_tokens"] == ENDLESS]
    cold = [b for b in endpoint.bodies if b["max_tokens"] == 1]
    assert (len(streams), len(cold)) == (numbers["streams"], 6) == (8 // QUICK, 6)
    assert len({b["messages"][0]["content"][:100] for b in cold}) == 6
    assert 0 < numbers["usual_pause_p50_s"] <= numbers["longest_pause_s"]
    assert numbers["longest_pause_s"] == max(numbers["longest_pause_by_round_s"])


def test_the_table_has_a_line_for_every_measure(endpoint) -> None:
    done = {name: measure(endpoint, name) | {"peak_rss_mib": 1234} for name in SCENARIOS}
    failed = {name: {"failure": "it ended"} for name in SCENARIOS}
    broken = {name: {"errors": 3} for name in SCENARIOS}
    results = {
        name: {"one": done[name], "two": failed[name], "three": broken[name]} for name in SCENARIOS
    }
    lines = markdown(results, ["one", "two", "three"]).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert all(line.endswith("| failed | 3 errors |") for line in lines[2:])
    assert sum("| 1,234 |" in line for line in lines) == 3
    assert len(markdown({"agents": results["agents"]}, ["one"]).splitlines()) == 2 + 6


def test_a_measured_server_is_watched_and_ended(monkeypatch, tmp_path: Path) -> None:
    def web_server(model: Path, port: int) -> list[str]:
        return [sys.executable, "-m", "http.server", str(port), "--directory", str(model)]

    monkeypatch.setitem(servers.KINDS, "web", servers.Kind(web_server, "/", "some"))
    before = set(psutil.Process().children())
    with servers.serving("web", tmp_path, tmp_path / "logs" / "web.log") as running:
        assert running.endpoint.model == "some"
        (server,) = set(psutil.Process().children()) - before
    assert running.peak_rss > 1 << 20
    assert not server.is_running()


def test_a_server_that_does_not_start_says_why(monkeypatch, tmp_path: Path) -> None:
    def broken(model: Path, port: int) -> list[str]:
        return [sys.executable, "-c", "print('loading'); raise SystemExit('no such model')"]

    monkeypatch.setitem(servers.KINDS, "broken", servers.Kind(broken, "/", "some"))
    with (
        pytest.raises(servers.ServerFailed, match="broken ended with code 1: no such model"),
        servers.serving("broken", tmp_path, tmp_path / "broken.log"),
    ):
        pytest.fail("it did not start")


def test_a_random_models_words_survive_as_text(tmp_path: Path) -> None:
    out = random_model.make(tmp_path / "model", hidden=32, layers=1, heads=2, kv_heads=1)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    weights = random_model.mx.load(str(out / "model.safetensors"))
    head = weights["lm_head.weight"]
    chosen = [i for i, live in enumerate((head != 0).any(axis=1).tolist()) if live]
    assert len(chosen) >= 100
    assert not set(chosen) & {tokenizer.token_to_id(t) for t in random_model.SPECIAL}
    reply = tokenizer.decode(chosen)
    turn = "<|im_start|>assistant\n"
    again = tokenizer.encode(turn + reply + "<|im_end|>").ids
    assert again == [*tokenizer.encode(turn).ids, *chosen, tokenizer.token_to_id("<|im_end|>")]
    text = make_text("0 system shared", 6000)
    assert 2.5 < len(text) / len(tokenizer.encode(text).ids) < 3.6
