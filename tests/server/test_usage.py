"""``/admin/usage`` of a real server: what responses said, by the day, and across restarts."""

from __future__ import annotations

import csv
import io
import signal
import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from scheduler.usage import SUMS, Counts, Key
from server.config import usage_file
from server.usage_admin import COLUMNS, lending_rows, usage_rows
from server.usage_store import day_of

from .limited import OPERATOR, TENANTS, as_tenant, serve
from .process import PATIENCE, Server
from .support import MODEL, idle, poll

ROUTE = "/v1/completions"
TOKENS = ("prompt_tokens", "cached_tokens", "generated_tokens")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("usage") / "usage.db"


@pytest.fixture(scope="module")
def limited(tiny: str, file: Path) -> Iterator[Server]:
    with serve(file.parent, tiny, "--usage-db", str(file)) as server:
        yield server.ready()


@pytest.fixture
def http(limited: Server) -> Iterator[httpx.Client]:
    with client(limited) as http:
        yield http


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=PATIENCE, headers=OPERATOR)


def ask(http: httpx.Client, tenant: str, **more: Any) -> dict[str, int]:
    """The usage that a response tells, under the names of the books."""
    body = {"model": MODEL, "prompt": [7] * 100, "max_tokens": 5, "ignore_eos": True} | more
    answer = http.post(ROUTE, json=body, headers=as_tenant(tenant)).raise_for_status().json()
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return dict(
        zip(TOKENS, (usage["prompt_tokens"], cached, usage["completion_tokens"]), strict=True)
    )


def used(http: httpx.Client, tenant: str) -> dict[str, float]:
    """All rows of a tenant, as sums."""
    answer = http.get("/admin/usage", params={"tenant": tenant}).raise_for_status().json()
    assert {row["tenant"] for row in answer["usage"]} <= {tenant}
    names = (*SUMS, "lent_tokens", "borrowed_tokens")
    return {name: sum(row[name] for row in answer["usage"]) for name in names}


def test_rows_are_the_sums_of_what_responses_said(http: httpx.Client) -> None:
    said = [ask(http, "free", prompt=[i] * (50 + i), max_tokens=i) for i in range(5, 9)]
    said.append(ask(http, "free", prompt=[5] * 60))
    metrics = poll(http, idle)
    found = used(http, "free")
    assert found["requests"] == 5 == metrics("tenant_requests_total", tenant="free")
    for name in TOKENS:
        assert found[name] == sum(each[name] for each in said)
    assert metrics("tenant_prompt_tokens_total", tenant="free") == found["prompt_tokens"]
    assert metrics("tenant_cached_tokens_total", tenant="free") == found["cached_tokens"] > 0
    assert metrics("tenant_generation_tokens_total", tenant="free") == found["generated_tokens"]
    assert found["queue_seconds"] > 0 and found["engine_seconds"] > 0
    assert metrics("tenant_engine_seconds_total", tenant="free") > 0


def test_rows_name_their_day_and_model(http: httpx.Client) -> None:
    before = datetime.now(UTC).date()
    ask(http, "both")
    poll(http, idle)
    rows = http.get("/admin/usage", params={"tenant": "both"}).json()["usage"]
    assert {row["model"] for row in rows} == {MODEL}
    assert all(before <= date.fromisoformat(row["day"]) for row in rows)
    assert list(rows[0]) == list(COLUMNS)


def test_csv(http: httpx.Client) -> None:
    ask(http, "free")
    poll(http, idle)
    asked = {"params": {"format": "csv", "tenant": "free"}}
    by_header = {"params": {"tenant": "free"}, "headers": {"accept": "text/csv"}}
    wanted = http.get("/admin/usage", params={"tenant": "free"}).json()["usage"]
    for how in (asked, by_header):
        answer = http.get("/admin/usage", **how)
        assert answer.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [{k: str(v) for k, v in row.items()} for row in wanted] == rows
    both = http.get("/admin/usage?format=json", headers={"accept": "text/csv"})
    assert both.headers["content-type"] == "application/json"


def test_days_and_tenants_are_chosen(http: httpx.Client) -> None:
    ask(http, "free")
    ask(http, "both")
    poll(http, idle)
    names = {row["tenant"] for row in http.get("/admin/usage").json()["usage"]}
    assert {"free", "both"} <= names <= set(TENANTS)
    for query in ("to=1999-12-31", "from=9999-01-01", "tenant=nobody"):
        assert http.get(f"/admin/usage?{query}").json() == {"usage": [], "lending": []}
    assert http.get("/admin/usage?from=2000-01-01&to=9998-12-31").json()["usage"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("from=yesterday", "from"),
        ("from=2030-02-30", "from"),
        ("to=20300101", "to"),
        ("to=", "to"),
        ("from=2030-01-02&to=2030-01-01", "from"),
        ("from=2030-01-02&from=2030-01-01", "from"),
        ("format=xml", "format"),
        ("tenants=a", "tenants"),
        ("from=%D9%A2%D9%A0%D9%A3%D9%A0-01-01", "from"),
    ],
)
def test_wrong_questions(http: httpx.Client, query: str, param: str) -> None:
    answer = http.get(f"/admin/usage?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_restart_keeps_what_was_counted(tiny: str, tmp_path: Path) -> None:
    for rounds, end in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM), 1):
        with serve(tmp_path, tiny) as server:
            server.ready()
            with client(server) as http:
                ask(http, "free")
                poll(http, idle)
                if rounds > 1:  # looking also writes, which the first end must do by itself
                    found = used(http, "free")
                    assert found["requests"] == rounds
                    assert found["generated_tokens"] == 5 * rounds
            server.signal(end)
            assert server.wait() == (0 if end == signal.SIGTERM else -signal.SIGKILL)
    assert (tmp_path / "commons.usage.db").exists()


def test_a_file_that_cannot_be_used_stops_nobody(tiny: str, tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    file.write_text("no database " * 100)
    with Server("--model", tiny, "--usage-db", str(file)) as server:
        server.ready()
        with client(server) as http:
            ask(http, "default")
            poll(http, idle)
            answer = http.get("/admin/usage")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "usage_unreadable"
            file.unlink()
            assert used(http, "default")["requests"] == 1
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert any("usage cannot be kept" in line for line in server.lines)
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT requests FROM usage").fetchall() == [(1,)]
    database.close()


def test_where_usage_is_kept(tmp_path: Path) -> None:
    config = tmp_path / "team.toml"
    assert usage_file(None, None) is None
    assert usage_file(None, config) == tmp_path / "team.usage.db"
    assert usage_file("none", config) is None
    assert usage_file("~/u.db", None) == Path.home() / "u.db"


def test_lent_and_borrowed_are_between_different_tenants() -> None:
    day = day_of(date(2030, 1, 2))
    history = {
        Key(day, "b", "m"): Counts(1, 10, 9, 2, 0.1, 0.2, {"a": 4, "b": 3, "gone": 2}),
        Key(day, "a", "m"): Counts(1, 10, 1, 2, 0.30000001, 0.2, {"b": 1}),
    }
    rows = {row["tenant"]: row for row in usage_rows(history)}
    lent = {name: (row["lent_tokens"], row["borrowed_tokens"]) for name, row in rows.items()}
    assert lent == {"a": (4, 1), "b": (1, 6), "gone": (2, 0)}
    assert list(rows) == ["a", "b", "gone"]
    assert (rows["gone"]["day"], rows["gone"]["requests"]) == ("2030-01-02", 0)
    pairs = [(p["lender"], p["borrower"], p["tokens"]) for p in lending_rows(history)]
    assert pairs == [("b", "a", 1), ("a", "b", 4), ("b", "b", 3), ("gone", "b", 2)]
