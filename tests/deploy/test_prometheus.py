"""A real Prometheus scrapes a real server under load: every panel and every rule has data."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests.models import model_dir
from tests.server.access import bearer, write_keys
from tests.server.limited import as_tenant
from tests.server.process import PATIENCE, ROOT, Server
from tests.server.support import MODEL, idle, ids, poll

from .dashboards import filled_in, queries
from .prometheus import BINARIES, DEPLOY, MISSING, Prometheus, write_config

FOLDER = DEPLOY / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
KEYS = ("a", "b", "few", "metrics")
COMPARISON = re.compile(r"(==|!=|>=|<=|>|<)(?= )")

pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not installed: {' '.join(MISSING)} (Debian: prometheus, Homebrew: prometheus)",
)


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str | Path) -> None:
    command = [str(BINARIES["promtool"]), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little memory, two tenants that share prefixes and one with a limit."""
    folder = tmp_path_factory.mktemp("server")
    path = model_dir("qwen3")
    config = folder / "commons.toml"
    config.write_text(
        f'model = "{path}"\nkv-memory = "4MB"\nmetrics-compat = "vllm"\n'
        "[tenants.a]\nweight = 2\n[tenants.b]\n[tenants.few]\nrequests_per_minute = 1\n"
    )
    write_keys(config, *KEYS)
    with Server("--config", str(config)) as server:
        yield server.ready()


def tries() -> Iterator[int]:
    """Numbers for as long as it may take; then it has failed."""
    deadline = time.monotonic() + PATIENCE
    for number in itertools.count():
        assert time.monotonic() < deadline, "it did not come about"
        yield number


class Watched(NamedTuple):
    """A Prometheus that has seen a load, and what responses to ``b`` said was cached."""

    prometheus: Prometheus
    cached: int


def ask(http: httpx.Client, tenant: str, prompt: list[int]) -> int:
    """The tokens found in the cache; a refusal finds none."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "ignore_eos": True}
    answer = http.post("/v1/completions", json=body, headers=as_tenant(tenant)).json()
    found: int = answer.get("usage", {}).get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return found


def seen(prometheus: Prometheus) -> bool:
    """Whether the load is in the last of the recording rules, after all before it."""
    last = prometheus.values("tenant:commons_tenant_engine_seconds_by_weight:rate5m > 0")
    scrapes = prometheus.values("count_over_time(up[30s]) > 3")
    return bool(last and scrapes) and all(r["health"] == "ok" for r in prometheus.rules())


@pytest.fixture(scope="module")
def watched(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    key = folder / "key"
    key.write_text("key-of-metrics")
    config = write_config(folder, server.url.removeprefix("http://"), key)
    promtool("check", "config", config)
    with Prometheus(config) as prometheus, httpx.Client(base_url=server.url) as http:
        cached = 0
        for number in tries():
            if seen(prometheus):
                break
            shared = ids(150, number)
            ask(http, "a", shared + ids(20, number + 1))
            cached += ask(http, "b", shared + ids(20, number + 2))
            ask(http, "few", [5])
        with httpx.Client(base_url=server.url, headers=bearer("key-of-metrics")) as own:
            poll(own, idle)
        yield Watched(prometheus, cached)


@pytest.mark.parametrize(("panel", "expr"), queries(), ids=[name for name, _ in queries()])
def test_every_panel_has_data(watched: Watched, panel: str, expr: str) -> None:
    assert watched.prometheus.values(filled_in(expr))


@pytest.mark.parametrize("name", [rule["record"] for rule in rules("rules.yml")])
def test_every_recording_rule_has_data(watched: Watched, name: str) -> None:
    assert watched.prometheus.values(name)


@pytest.mark.parametrize("alert", rules("alerts.yml"), ids=lambda alert: alert["alert"])
def test_every_alert_has_something_to_compare(watched: Watched, alert: dict[str, Any]) -> None:
    compared, times = COMPARISON.subn(r"\1 bool", alert["expr"])
    assert times
    assert set(watched.prometheus.values(compared)) <= {0, 1}
    assert watched.prometheus.values(compared)


def test_rules_are_evaluated_and_nothing_is_wrong(watched: Watched) -> None:
    found = watched.prometheus.rules()
    assert len(found) == len(rules("rules.yml")) + len(rules("alerts.yml"))
    assert {(rule["health"], rule.get("lastError", "")) for rule in found} == {("ok", "")}
    firing = {r["name"] for r in found if r.get("state") == "firing"}
    assert not firing


def test_prometheus_has_what_responses_said(watched: Watched) -> None:
    assert watched.cached > 0
    expr = 'sum(commons_prefix_cache_lent_tokens_total{borrower="b"})'
    for _ in tries():  # until the next scrape
        if (found := watched.prometheus.values(expr)) == [watched.cached]:
            break
    assert found == [watched.cached]
    (theirs,) = watched.prometheus.values("vllm:prompt_tokens_total")
    assert [theirs] == watched.prometheus.values("sum(commons_prompt_tokens_total)")


def test_promtool_finds_nothing_wrong() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "rules.yml", FOLDER / "alerts.yml")
    promtool("test", "rules", *sorted((FOLDER / "tests").glob("*.yml")))


def test_every_alert_is_tested_both_ways() -> None:
    text = (FOLDER / "tests" / "alerts_test.yml").read_text()
    for alert in rules("alerts.yml"):
        assert f"name: {alert['alert']} fires" in text
        assert f"name: {alert['alert']} stays quiet" in text


def test_every_alert_has_its_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    alerts = rules("alerts.yml")
    assert headings == [alert["alert"] for alert in alerts]
    for alert in alerts:
        link = alert["annotations"]["runbook_url"]
        assert link == f"docs/runbooks.md#{alert['alert'].lower()}"
