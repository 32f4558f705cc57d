"""The log: one line a request with what it cost, its name on every line, and nothing forged."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from engine import embedded
from scheduler.request import Request
from scheduler.streams import RequestStream
from server.app import create_app
from server.logs import HumanFormatter, JsonFormatter, _named
from server.request_log import current

from .access import TENANTS, A, ask, bearer, grants
from .process import PATIENCE, Server, commons
from .scripted import GOOD, Scripted, wired
from .test_disconnect import call, read_event

pytestmark = pytest.mark.anyio

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
FORGED = ["evil\nINFO forged", "\x1b[2K\rforged", "x\u2028y", "\u202ez", "\ud800"]
SECRET = "a secret that no log may have"
ID = "req-of-the-client"


class Log:
    """What was logged, in both forms."""

    def __init__(self) -> None:
        self._human, self._json = io.StringIO(), io.StringIO()
        self.handlers = []
        for stream, formatter in ((self._human, HumanFormatter()), (self._json, JsonFormatter())):
            handler = logging.StreamHandler(stream)
            handler.setFormatter(formatter)
            handler.addFilter(_named)
            self.handlers.append(handler)

    @property
    def text(self) -> str:
        return self._human.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._json.getvalue().splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == "commons.request"]


@pytest.fixture
def log() -> Iterator[Log]:
    log, logger = Log(), logging.getLogger("commons")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    for handler in log.handlers:
        logger.addHandler(handler)
    yield log
    for handler in log.handlers:
        logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def service() -> Scripted:
    service = Scripted()
    service.says = "Hello there, all of you."
    return service


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app, raises=False) as client:
        client.headers["x-request-id"] = ID
        yield client


PROMPT: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}]}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m"} | PROMPT | more


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, chat()),
        ("/v1/completions", {"model": "m", "prompt": SECRET}),
        ("/v1/responses", {"model": "m", "input": SECRET}),
        (MESSAGES, chat(max_tokens=50)),
    ],
)
async def test_a_reply_is_one_line(
    http: httpx.AsyncClient,
    service: Scripted,
    log: Log,
    route: str,
    body: dict[str, Any],
    streams: bool,
) -> None:
    response = await http.post(route, json=body | {"stream": streams})
    assert response.status_code == 200, response.text
    (line,) = log.lines
    (request,) = service.requests
    tokens = len(service.tokenizer.encode(service.says)) + 1
    assert line["level"] == "info"
    assert line["request_id"] == ID == request.origin
    assert (line["method"], line["path"], line["status"]) == ("POST", route, 200)
    assert (line["tenant"], line["model"], line["finish_reason"]) == ("default", "m", "stop")
    assert line["prompt_tokens"] == len(request.prompt)
    assert (line["cached_tokens"], line["generated_tokens"]) == (0, tokens)
    assert 0 <= line["ttft_seconds"] <= line["duration_seconds"]
    assert request.id == f"{line['response_id']}-0"
    assert line["response_id"] in response.text
    (human,) = log.text.splitlines()
    for part in (f"POST {route} 200 in ", "tenant=default", f"prompt={len(request.prompt)}"):
        assert part in human
    assert human.endswith(f"[{ID}]")
    assert not any(word in log.text for word in ("secret", "Hello"))


async def test_replies_of_one_response_are_counted_together(
    http: httpx.AsyncClient, service: Scripted, log: Log
) -> None:
    response = await http.post(CHAT, json=chat(n=3))
    (line,) = log.requests()
    usage = response.json()["usage"]
    assert line["prompt_tokens"] == usage["prompt_tokens"] == len(service.requests[0].prompt)
    assert line["generated_tokens"] == usage["completion_tokens"]


@pytest.mark.parametrize(
    ("route", "body", "status", "code", "param", "model"),
    [
        (CHAT, chat(max_tokens=-1), 400, "invalid_request_error", "max_tokens", "m"),
        (CHAT, chat(model="other"), 404, "model_not_found", "model", "other"),
        (CHAT, {"messages": SECRET}, 400, "invalid_request_error", "messages", None),
        ("/v1/nothing", {}, 404, "not_found", None, None),
        (
            "/v1/messages",
            chat(model="other", max_tokens=1),
            404,
            "model_not_found",
            "model",
            "other",
        ),
    ],
)
async def test_a_refusal_is_one_line_with_its_reason(
    http: httpx.AsyncClient,
    log: Log,
    route: str,
    body: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    model: str | None,
) -> None:
    assert (await http.post(route, json=body)).status_code == status
    (line,) = log.lines
    assert (line["level"], line["status"], line["error"]) == ("info", status, code)
    assert (line.get("param"), line.get("model")) == (param, model)
    assert "prompt_tokens" not in line
    assert "secret" not in log.text


async def test_faults_of_the_server_are_told_apart(
    http: httpx.AsyncClient, service: Scripted, log: Log
) -> None:
    service.fails_after, service.apart = 6, True
    assert (await http.post(CHAT, json=chat())).status_code == 503
    await http.post(CHAT, json=chat(stream=True))
    service.state = GOOD._replace(ready=False, draining=True)
    assert (await http.post(CHAT, json=chat())).status_code == 503
    whole, streamed, late = log.requests()
    assert (whole["level"], whole["status"], whole["error"]) == ("warning", 503, "engine_error")
    assert (whole["finish_reason"], whole["model"]) == ("error", "m")
    assert (streamed["status"], streamed["error"]) == (200, "engine_error")
    assert streamed["level"] == "warning"
    assert (streamed["finish_reason"], streamed["generated_tokens"]) == ("error", 7)
    assert late["error"] == "not_ready"


async def test_an_exception_is_logged_with_its_request(
    http: httpx.AsyncClient,
    service: Scripted,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("boom\n2030-01-01 INFO forged")

    monkeypatch.setattr(service, "use", broken)
    assert (await http.post(CHAT, json=chat())).status_code == 500
    fault, line = log.lines
    assert (fault["level"], fault["request_id"]) == ("error", ID)
    assert "boom" in fault["exception"]
    assert (line["level"], line["status"], line["error"]) == ("error", 500, "internal_error")
    inside = log.text.splitlines()[1:-1]
    assert inside
    assert all(part.startswith("    ") for part in inside)


async def test_watching_is_not_logged_unless_it_fails(
    http: httpx.AsyncClient, service: Scripted, log: Log
) -> None:
    for path in ("/livez", "/health", "/ready", "/metrics"):
        await http.get(path)
    assert {line["level"] for line in log.requests()} == {"debug"}
    service.state = GOOD._replace(alive=False, ready=False)
    await http.get("/health")
    assert log.requests()[-1]["level"] == "warning"


async def test_tenants_and_strangers(log: Log) -> None:
    app = Scripted(grants(*TENANTS)).app
    await ask(app, "GET", "/v1/models", bearer(A))
    await ask(app, "GET", "/v1/models", bearer("unknown"))
    known, stranger = log.requests()
    assert (known["tenant"], known["status"], known["client"]) == ("a", 200, "127.0.0.1")
    assert "tenant" not in stranger
    assert (stranger["status"], stranger["error"]) == (401, "invalid_api_key")
    assert A not in log.text


@pytest.mark.parametrize("name", FORGED)
async def test_no_line_can_be_forged(http: httpx.AsyncClient, log: Log, name: str) -> None:
    body = json.dumps(chat(model=name, adapter=name)).encode()
    await http.post(CHAT, content=body, headers={"content-type": "application/json"})
    app = http._transport.app  # type: ignore[attr-defined]
    path = f"/v1/{name.encode(errors='replace').decode()}"  # a socket brings no lone surrogate
    await ask(app, "GET", path, {"x-request-id": f"id-{name}"[:3] + "\n forged"})
    assert len(log.lines) == 2 == len(log.text.splitlines())
    assert log.text.isascii()
    assert not set(map(chr, [*range(10), *range(11, 32), 127])) & set(log.text)
    assert log.lines[1]["request_id"].startswith("req_")


async def test_a_long_name_is_cut(http: httpx.AsyncClient, log: Log) -> None:
    await http.post(CHAT, json=chat(model="x" * 100_000))
    await http.get("/v1/" + "y" * 10_000)
    assert len(log.text) < 2000


async def test_prompts_are_logged_when_asked_for(service: Scripted, log: Log) -> None:
    app = create_app(
        service,
        service.metrics.registry,
        service.access,
        default_max_tokens=9,
        log_prompts=True,
    )
    headers = {"content-type": "application/json", "x-request-id": ID}
    body = json.dumps(chat(user="x\ny"), ensure_ascii=False, indent=1).encode()
    status, *_ = await ask(app, "POST", CHAT, headers, body=body)
    assert status in (200, 499)
    prompt, _ = log.lines
    assert (prompt["logger"], prompt["request_id"]) == ("commons.prompts", ID)
    assert SECRET in prompt["message"]
    assert len(log.text.splitlines()) == 2


def test_a_server_logs_as_it_is_told() -> None:
    """A real one: JSON alone, from the first line to the last; clients that leave; no secret."""
    with Server("--log-json", "--model", str(embedded.path()), "--drain-timeout", "0") as server:
        server.ready()
        body = {"model": "commons-tiny", "max_tokens": 4} | PROMPT
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
            whole = http.post(CHAT, json=body, headers={"x-request-id": "whole"}).json()
            again = http.post(CHAT, json=body, headers={"x-request-id": "again"}).json()
            for streams in (True, False):
                endless = body | {"max_tokens": 2000, "ignore_eos": True, "stream": streams}
                with call(http, endless, CHAT) as connection:
                    if streams:
                        read_event(connection)
                server.until('"finish_reason": "disconnect"')
        server.process.terminate()
        assert server.wait() == 0
    lines = [json.loads(line) for line in server.lines]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    requests = {line["request_id"]: line for line in lines if line["logger"] == "commons.request"}
    for name, reply in (("whole", whole), ("again", again)):
        usage = reply["usage"]
        assert requests[name]["response_id"] == reply["id"]
        assert requests[name]["prompt_tokens"] == usage["prompt_tokens"]
        assert requests[name]["generated_tokens"] == usage["completion_tokens"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert requests[name]["cached_tokens"] == cached
    assert requests["again"]["cached_tokens"] > 0
    gone = [line for line in requests.values() if line["finish_reason"] == "disconnect"]
    assert [line["status"] for line in gone] == [200, 499]
    assert "secret" not in "".join(server.lines)


async def test_what_outlives_a_request_does_not_hold_its_replies(
    http: httpx.AsyncClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a connection's keep-alive timer, which has the context of the request before it."""
    kept: list[Context] = []
    enqueue = service.enqueue

    def watched(request: Request) -> RequestStream:
        kept.append(copy_context())
        return enqueue(request)

    monkeypatch.setattr(service, "enqueue", watched)
    service.fails_after = 2
    assert (await http.post(CHAT, json=chat())).status_code == 503
    (context,) = kept
    record = context.run(current)
    assert record is not None
    assert (record.id, record.replies, record.error) == (ID, None, None)


def written(log: Path, text: str, server: Server) -> str:
    """What is in the log, as soon as ``text`` is."""
    end = time.monotonic() + PATIENCE
    while text not in (found := log.read_text() if log.exists() else ""):
        assert server.process.poll() is None, server.lines
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def test_a_log_file_may_be_renamed(tmp_path: Path) -> None:
    log, old = tmp_path / "server.log", tmp_path / "server.log.0"
    with Server("--log-file", str(log)) as server:
        url = written(log, "ready at ", server).partition("ready at ")[2].split()[0]
        httpx.get(f"{url}/v1/models", headers={"x-request-id": "before"}).raise_for_status()
        written(log, "[before]", server)
        log.rename(old)
        httpx.get(f"{url}/v1/models", headers={"x-request-id": "after"}).raise_for_status()
        server.process.terminate()
        assert server.wait() == 0
    assert not server.lines
    assert "[before]" in old.read_text()
    assert "[after]" not in old.read_text()
    assert "[after]" in log.read_text()


def test_a_log_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    ended = commons("serve", "--log-file", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr == f"commons serve: cannot write {tmp_path}: Is a directory\n"


def test_a_server_warns_that_it_logs_prompts() -> None:
    with Server("--log-prompts") as server:
        server.until("the log has what clients send")
        server.ready()
        body = {"model": "commons-tiny", "prompt": SECRET, "max_tokens": 1}
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
        server.until(SECRET)


async def test_lines_of_other_threads_have_the_name(http: httpx.AsyncClient, log: Log) -> None:
    """A worker thread of the request logs under its name, and the next request has another."""
    from server import request_log

    def work() -> None:
        logging.getLogger("commons.engine").warning("from a thread")

    token = request_log._current.set(request_log.Record("mine", "GET", "/"))
    try:
        await anyio.to_thread.run_sync(work)
    finally:
        request_log._current.reset(token)
    work()
    assert [line.get("request_id") for line in log.lines] == ["mine", None]
