"""``commons bench`` and the comparison with other servers, against a small endpoint on a socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import typer
from aiohttp import web
from tokenizers import Tokenizer
from typer.testing import CliRunner

from deploy.loadtest import random_model, servers
from deploy.loadtest.comparison import ROWS, markdown
from deploy.loadtest.scenarios import ENDLESS, QUICK, SCENARIOS, Numbers
from server.bench import bench
from server.bench_client import BenchError, Endpoint, Reply, open_session, stream_reply
from server.bench_load import Load
from server.bench_report import Results, Spread, seconds
from server.bench_text import make_text

WORDS = ("one ", "two ", "three ", "four")


class TinyEndpoint:
    """Answers every chat with WORDS; a token is a word, and what an earlier prompt began with
    counts as cached. ``say`` replaces what is written to the stream."""

    def __init__(self) -> None:
        self.models = ["tiny"]
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.usages: list[dict] = []
        self.refusal: tuple[int, str] | None = None
        self.say: list[bytes] | None = None
        self.hold_from_turn: int | None = None
        self.held = threading.Semaphore(0)
        self.hung_up = 0
        self._seen: list[list[str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._up = threading.Event()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> TinyEndpoint:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await web.SockSite(runner, sock).start()
        self._up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": m} for m in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if self.refusal:
            status, message = self.refusal
            return web.json_response({"error": {"message": message}}, status=status)
        usage = self._usage(body["messages"])
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        turn = sum(m["role"] == "user" for m in body["messages"])
        if self.hold_from_turn is not None and turn >= self.hold_from_turn:
            self.held.release()
            await self._stop.wait()
            return response
        pieces = self.say if self.say is not None else stream_of(WORDS, usage)
        if body["max_tokens"] >= ENDLESS:
            pieces = itertools.repeat(delta(content="more "))
        try:
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0)
        except ConnectionResetError:
            self.hung_up += 1
        return response

    def _usage(self, messages: list[dict]) -> dict:
        words = [w for m in messages for w in m["content"].split()]
        cached = max((common(words[:-1], earlier) for earlier in self._seen), default=0)
        self._seen.append(words)
        usage = {
            "prompt_tokens": len(words),
            "completion_tokens": len(WORDS),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        self.usages.append(usage)
        return usage


def common(one: list[str], other: list[str]) -> int:
    """Length of the common start of two prompts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def delta(**fields: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def stream_of(words: tuple[str, ...], usage: dict | None) -> Iterator[bytes]:
    yield delta(role="assistant", content="")
    for word in words:
        yield delta(content=word)
    yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    if usage:
        yield event({"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


@pytest.fixture
def endpoint() -> Iterator[TinyEndpoint]:
    with TinyEndpoint() as tiny:
        yield tiny


app = typer.Typer()
app.command()(bench)

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

    assert set(report) == {
        "base", "model", "agents", "turns", "system_tokens", "user_tokens", "max_tokens",
        "private", "stagger_s", "seed", "wall_s", "interrupted", "requests", "errors",
        "error_messages", "uncounted_replies", "prompt_tokens", "cached_tokens",
        "completion_tokens", "hit_rate", "output_tokens_per_s", "ttft_s", "itl_s", "pause_s",
        "by_turn",
    }  # fmt: skip
    assert (report["model"], report["agents"], report["turns"], report["seed"]) == ("tiny", 3, 2, 7)
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
    load = Load(system_tokens=100, user_tokens=50)
    assert load.system_prompt(0) == load.system_prompt(1) and len(load.system_prompt(0)) == 300
    assert load.question(0, 0) != load.question(0, 1) != load.question(1, 1)


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
    results.errors.update(["HTTP 503: full", "HTTP 503: full", "no reply within --timeout"])
    assert results.failure() == (
        "3 of 3 requests failed: HTTP 503: full (2 times; and other errors)"
    )


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
