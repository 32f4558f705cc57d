"""``commons bench`` against a small endpoint on a socket."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from server.bench import bench
from server.bench_client import BenchError, Endpoint, Reply, open_session, stream_reply
from server.bench_options import AgentOptions
from server.bench_prompts import question, system_prompt
from server.bench_report import seconds
from server.bench_results import Results, Spread
from server.bench_text import make_text

from .endpoint import WORDS, TinyEndpoint, delta, event, stream_of

app = typer.Typer()
app.command()(bench)

# What programs may rely on; a key that goes, or means something else, takes a new version.
KEYS = {
    "version", "base", "model", "began", "scenario", "wall_s", "interrupted", "requests", "errors",
    "error_messages", "finish_reasons", "uncounted_replies", "replies_without_cached",
    "prompt_tokens", "cached_tokens",
    "completion_tokens", "hit_rate", "output_tokens_per_s", "ttft_s", "itl_s", "pause_s",
    "by_turn", "by_group", "pause_histogram", "course", "memory",
}  # fmt: skip
SMALL = ("--agents", "3", "--turns", "2", "--system-tokens", "60", "--user-tokens", "20")


def run(endpoint: TinyEndpoint, *args: str):
    return CliRunner().invoke(app, ["--base", endpoint.base, *SMALL, *args])


def ask(endpoint: TinyEndpoint) -> Reply:
    async def once() -> Reply:
        async with open_session(10) as session:
            messages = [{"role": "user", "content": "hello you"}]
            return await stream_reply(session, Endpoint(endpoint.base, "tiny"), messages, 4)

    return asyncio.run(once())


def test_the_report_adds_up_what_the_server_counted(endpoint, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    result = run(endpoint, "--json", str(file), "--seed", "7", "--key", "secret")
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())

    assert set(report) == KEYS
    (group,) = report["scenario"]["clients"]
    assert (report["model"], group["turns"], report["scenario"]["seed"]) == ("tiny", 2, 7)
    assert group["arrivals"] == {"kind": "closed", "clients": 3, "stagger_s": 0.0}
    assert (report["requests"], report["errors"], report["interrupted"]) == (6, 0, False)
    assert report["uncounted_replies"] == 0
    prompt = sum(u["prompt_tokens"] for u in endpoint.usages)
    cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in endpoint.usages)
    assert report["prompt_tokens"] == prompt == sum(t["prompt_tokens"] for t in report["by_turn"])
    assert report["cached_tokens"] == cached == sum(t["cached_tokens"] for t in report["by_turn"])
    assert 0 < report["hit_rate"] == round(cached / prompt, 4) < 1
    assert report["completion_tokens"] == 6 * len(WORDS)
    assert [(t["turn"], t["replies"]) for t in report["by_turn"]] == [(1, 3), (2, 3)]
    assert report["output_tokens_per_s"] == pytest.approx(
        report["completion_tokens"] / report["wall_s"], rel=0.2
    )
    for spread in (report["ttft_s"], report["itl_s"], *(t["ttft_s"] for t in report["by_turn"])):
        assert 0 <= spread["p50"] <= spread["p95"] <= spread["max"] <= report["wall_s"]
    assert f"{prompt:,}" in result.output and f"{cached:,}" in result.output
    assert set(endpoint.keys) == {"Bearer secret"}


def test_agents_share_a_prompt_and_keep_the_replies(endpoint) -> None:
    assert run(endpoint, "--max-tokens", "4").exit_code == 0
    first = [b["messages"] for b in endpoint.bodies if len(b["messages"]) == 2]
    second = [b["messages"] for b in endpoint.bodies if len(b["messages"]) == 4]
    assert len(first) == len(second) == 3
    assert len({m[0]["content"] for m in first + second}) == 1
    assert len({m[1]["content"] for m in first}) == 3
    assert sorted(m[1]["content"] for m in second) == sorted(m[1]["content"] for m in first)
    assert {m[2]["content"] for m in second} == {"".join(WORDS)}
    body = endpoint.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 4, 0)
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}


def test_private_agents_have_nothing_in_common(endpoint) -> None:
    assert run(endpoint, "--private").exit_code == 0
    systems = {b["messages"][0]["content"] for b in endpoint.bodies}
    assert len(systems) == 3
    assert all(not a.startswith(b[:20]) for a in systems for b in systems - {a})


def test_a_listed_default_model_is_taken_by_its_name(endpoint) -> None:
    endpoint.models = ["other", "default"]
    assert run(endpoint).exit_code == 0
    assert {b["model"] for b in endpoint.bodies} == {"default"}


def test_json_on_stdout_is_alone_there(endpoint) -> None:
    result = run(endpoint, "--json", "-")
    assert json.loads(result.stdout)["requests"] == 6
    assert "TTFT" in result.stderr


def test_a_refused_model_ends_in_one_line(endpoint) -> None:
    endpoint.refusal = (404, "the model 'nope' does not\nexist")
    result = run(endpoint, "--model", "nope", "--json", "-")
    assert result.exit_code == 1
    assert result.stderr.strip() == (
        "commons bench: 3 of 3 requests failed: HTTP 404: the model 'nope' does not exist"
    )
    report = json.loads(result.stdout)
    assert (report["requests"], report["errors"]) == (3, 3)
    assert list(report["error_messages"].values()) == [3]
    assert report["ttft_s"] == {"p50": None, "p95": None, "max": None}


def test_no_server_ends_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = CliRunner().invoke(app, ["--base", f"http://127.0.0.1:{port}/v1"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"commons bench: no server at http://127.0.0.1:{port}/v1")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("base", ["localhost:8000", "nonsense", "ftp://127.0.0.1/v1"])
def test_a_base_that_is_no_url_ends_in_one_line(base: str) -> None:
    result = CliRunner().invoke(app, ["--base", base])
    assert result.exit_code == 1
    assert result.stderr == f"commons bench: {base} is not a URL\n"


def test_a_server_without_models_asks_for_one(endpoint) -> None:
    endpoint.models = []
    result = run(endpoint)
    assert result.exit_code == 1
    assert "name one with --model" in result.stderr
    assert endpoint.bodies == []


def test_a_request_over_time_is_an_error(endpoint) -> None:
    endpoint.hold_from_turn = 2
    result = run(endpoint, "--timeout", "2", "--json", "-")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["error_messages"] == {"no reply within --timeout": 3}
    assert [t["replies"] for t in report["by_turn"]] == [3, 0]


def test_events_may_be_cut_anywhere(endpoint) -> None:
    whole = b"".join(stream_of(("gr\u00fc\u00df ", "dich"), {"prompt_tokens": 5}))
    whole = whole.replace(b"\n\n", b"\r\n\r\n") + b": a comment\n\n"
    endpoint.say = [whole[i : i + 3] for i in range(0, len(whole), 3)]
    reply = ask(endpoint)
    assert reply.text == "gr\u00fc\u00df dich"
    assert (reply.prompt_tokens, reply.cached_tokens, reply.counted) == (5, 0, True)
    assert (reply.finish_reason, reply.completion_tokens) == ("length", 0)


def test_thinking_counts_as_text(endpoint) -> None:
    endpoint.say = [delta(reasoning="hm "), delta(reasoning_content="so "), delta(content="yes"),
                    b"data: [DONE]\n\n"]  # fmt: skip
    reply = ask(endpoint)
    assert reply.text == "hm so yes"
    assert not reply.counted
    assert 1 <= reply.completion_tokens == len(reply.pauses) + 1 <= 3
    assert 0 <= reply.ttft <= reply.total
    assert sum(reply.pauses) == pytest.approx(reply.total - reply.ttft)


@pytest.mark.parametrize(
    ("say", "message"),
    [
        ([delta(content="one")], "broke off"),
        ([delta(content="one"), event({"error": {"message": "engine\ndied"}})], "engine died"),
        ([event({"error": "busy"})], "busy"),
        ([b"data: {nonsense\n\n"], "something else"),
        ([event({"choices": [{"delta": {"content": 3}}]})], "something else"),
    ],
)
def test_a_stream_that_ends_badly_is_an_error(endpoint, say, message) -> None:
    endpoint.say = say
    with pytest.raises(BenchError, match=message):
        ask(endpoint)


def test_ctrl_c_prints_what_there_is(endpoint) -> None:
    endpoint.hold_from_turn = 2
    code = "import typer; from server.bench import bench; typer.run(bench)"
    args = [sys.executable, "-c", code, "--base", endpoint.base, *SMALL, "--json", "-"]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(3):
            assert endpoint.held.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    report = json.loads(out)
    assert process.returncode == 130
    assert report["interrupted"] is True
    assert [t["replies"] for t in report["by_turn"]] == [3, 0]
    assert (report["requests"], report["errors"]) == (3, 0)
    assert report["completion_tokens"] == 3 * len(WORDS)
    assert "Traceback" not in err and "TTFT" in err


def test_text_follows_from_its_seed() -> None:
    text = make_text("a seed", 6000)
    assert len(text) == 6000
    assert make_text("a seed", 2000) == text[:2000]
    assert make_text("another", 6000)[:200] != text[:200]
    assert text.isascii() and "def " in text and "return " in text
    assert len(set(text.split())) > 300
    load = AgentOptions(2, 2, 100, 50, 8).as_scenario()
    (group,) = load.clients
    assert system_prompt(load, group, 0) == system_prompt(load, group, 1)
    assert len(system_prompt(load, group, 0)) == 300
    asked = {question(load, group, i, turn) for i in (0, 1) for turn in (0, 1)}
    assert len(asked) == 4 and asked == {
        question(load, group, i, t) for i in (1, 0) for t in (1, 0)
    }


def test_spread() -> None:
    assert Spread.of([]) == (None, None, None)
    assert Spread.of([3.0]) == (3.0, 3.0, 3.0)
    assert Spread.of(float(n) for n in range(100, 0, -1)) == (50.5, 95.0, 100.0)
    assert Spread.of([1.0, 2.0, 10.0]) == (2.0, 10.0, 10.0)
    assert Spread(0.00012345, None, 1.0).json() == {"p50": 0.0001, "p95": None, "max": 1.0}


def test_nothing_measured_is_reported_as_such() -> None:
    numbers = Results(turns=2).json()
    assert numbers["hit_rate"] == numbers["output_tokens_per_s"] == 0.0
    assert numbers["by_turn"][1]["replies"] == 0
    assert Results(turns=1).failure() is None
    assert (seconds(None), seconds(0.0123), seconds(12.345)) == ("–", "12.3 ms", "12.35 s")


def test_several_kinds_of_errors_are_one_line() -> None:
    results = Results(turns=1)
    for message in ("HTTP 503: full", "HTTP 503: full", "no reply within --timeout"):
        results.fail("agent", 0, 0.0, 1.0, message)
    assert results.failure() == (
        "3 of 3 requests failed: HTTP 503: full (2 times; and other errors)"
    )
