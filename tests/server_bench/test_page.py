"""Loads on a real server, and the page that is made of what came of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from server.bench import bench
from server.bench_page import page
from server.bench_plot import Bar, Series, histogram, line_plot, linear, logarithmic
from server.bench_results import Results
from server.bench_watch import Look, memory
from tests.server.process import Server

app = typer.Typer()
app.command()(bench)

CLOSED = """\
about = "closed, <&> quoted"

[[clients]]
name = "agent"
arrivals = { kind = "closed", clients = 3 }
turns = 2
system_tokens = 200
user_tokens = 20
max_tokens = 6
"""
OPEN = """\
duration_s = 1.5

[[clients]]
name = "adapted"
models = "adapters"
arrivals = { kind = "poisson", per_s = 4.0 }
system_tokens = 60
user_tokens = [10, 30]
max_tokens = [2, 6]

[[clients]]
name = "crowd"
conversations = 3
arrivals = { kind = "burst", size = 3, every_s = 5.0 }
user_tokens = 20
max_tokens = 4
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The embedded model with its adapters."""
    with Server() as server:
        yield server.ready()


def measured(server: Server, folder: Path, scenario: str) -> tuple[dict[str, Any], str]:
    """The report and the page of a run."""
    file = folder / "small.toml"
    file.write_text(scenario)
    numbers, html = folder / "numbers.json", folder / "page.html"
    args = ["--base", f"{server.url}/v1", "--scenario", str(file)]
    result = CliRunner().invoke(app, [*args, "--json", str(numbers), "--html", str(html)])
    assert result.exit_code == 0, result.output
    return json.loads(numbers.read_text()), html.read_text()


def tree(html: str) -> ElementTree.Element:
    """The page, which must be well-formed, asks for nothing and runs nothing."""
    doctype, _, rest = html.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    for word in ("src=", "href=", "@import", "url(", "<script", "<link", "<img", "<iframe"):
        assert word not in html
    return ElementTree.fromstring(rest)


def titles(root: ElementTree.Element) -> list[str]:
    return ["".join(caption.itertext()) for caption in root.iter("figcaption")]


def check_plots(root: ElementTree.Element) -> None:
    """Every plot has a name and a description, and all that it draws lies inside it."""
    plots = [svg for svg in root.iter("svg") if svg.get("role") == "img"]
    assert len(plots) == len(titles(root)) > 0
    named = {e.get("id"): e.text for svg in plots for e in svg.iter() if e.get("id")}
    for svg in plots:
        for name in svg.get("aria-labelledby", "").split():
            assert named[name]
        _, _, width, height = map(float, svg.get("viewBox", "").split())
        for line in svg.iter("polyline"):
            for point in line.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width and 0 <= y <= height
        for bar in svg.iter("rect"):
            assert float(bar.get("width", "")) > 0 <= float(bar.get("height", ""))


def test_a_closed_load_on_a_real_server(server: Server, tmp_path: Path) -> None:
    report, html = measured(server, tmp_path, CLOSED)
    assert (report["requests"], report["errors"]) == (6, 0)
    assert [t["replies"] for t in report["by_turn"]] == [3, 3]
    assert 0 < report["cached_tokens"] < report["prompt_tokens"]
    assert report["replies_without_cached"] == report["uncounted_replies"] == 0
    pauses = sum(part["count"] for part in report["pause_histogram"])
    assert 0 < pauses <= report["completion_tokens"] - 6
    assert (
        sum(part["completion_tokens"] for part in report["course"]) == report["completion_tokens"]
    )
    first = report["memory"][0]
    assert first["active_bytes"] >= first["weights_bytes"] > 0
    root = tree(html)
    check_plots(root)
    assert "closed, <&> quoted" in "".join(root.itertext())
    assert titles(root) == [
        "Time to first token by turn",
        "Time to first token by when the request was due",
        "Prompt tokens reused, by when the reply ended",
        "Pauses between two arrivals of text, by their length",
        "What became of the requests, by when they ended",
        "Memory of the server",
    ]


def test_an_open_load_on_a_real_server(server: Server, tmp_path: Path) -> None:
    report, html = measured(server, tmp_path, OPEN)
    assert report["errors"] == 0
    adapted, crowd = report["by_group"]
    assert adapted["requests"] > 0 and crowd["requests"] == 3
    check_plots(tree(html))


def report_of(results: Results) -> dict[str, Any]:
    return {
        "base": "http://h/v1", "model": "m", "began": "now", "memory": None,
        "scenario": {"name": "n", "about": ""}, **results.json(),
    }  # fmt: skip


def test_a_page_of_nothing_and_of_errors_alone() -> None:
    results = Results(1, ["a"])
    root = tree(page(report_of(results)))
    assert titles(root) == []
    results.fail("a", 0, 0.0, 0.25, "HTTP 503: <full>")
    results.interrupted = True
    root = tree(page(report_of(results)))
    check_plots(root)
    said = "".join(root.itertext())
    assert "failed: HTTP 503: <full>" in said and "interrupted" in said
    assert "shows no memory" in said


@pytest.mark.parametrize("high", [1e-4, 0.37, 1.0, 7.0, 99.0, 123456.0])
def test_axes_hold_their_values_with_few_round_ticks(high: float) -> None:
    axis = linear("x", 0, high, str)
    assert axis.low == 0 and axis.high >= high > axis.high / 2.1
    assert 2 <= len(axis.ticks) <= 8
    assert axis.place(0) == 0 and 0 < axis.place(high) <= 1
    whole = linear("n", 0, high, str, whole=True)
    assert all(tick == int(tick) for tick in whole.ticks)
    logs = logarithmic("t", high / 1000, high, str)
    assert logs.place(high / 1000) == 0 and logs.place(high) == pytest.approx(1)
    assert 2 <= len(logs.ticks) <= 8


def test_plots_say_their_values_in_words() -> None:
    x, y = linear("turn", 1, 3, "{:g}".format), linear("wait", 0, 10, "{:g} s".format)
    plot = line_plot("p", "Wait & see", [Series("p50", [(1, 2.0), (3, 9.0)])], x, y)
    assert "Wait &amp; see" in plot and "p50: from 2 s to 9 s." in plot
    assert "p50, turn 3: 9 s" in plot
    ElementTree.fromstring(plot)
    bars = histogram("h", "H", [Bar(1, 2, 3), Bar(2, 3, 8)], x, y)
    assert "11 in all, most of them from 2 to 3." in bars
    assert len(re.findall("<rect", bars)) == 2


def test_many_looks_at_memory_are_thinned_out() -> None:
    looks = [Look(float(i), {"active": i}) for i in range(1000)]
    assert len(memory(looks) or ()) <= 240
    assert (memory(looks[:2]) or [])[1] == {"at_s": 1.0, "active_bytes": 1}
    assert memory([]) is None
