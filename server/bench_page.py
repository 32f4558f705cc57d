"""A load's report as one HTML page that needs nothing from outside.

Made from the JSON report alone (``server.bench_json``). Well-formed XML, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .bench_plot import Axis, Bar, Series, histogram, legend, line_plot, linear, logarithmic
from .bench_report import seconds

Numbers = dict[str, Any]

STYLE = Path(__file__).with_name("bench_page.css")
SPREAD = ("p50", "p95", "max")
MIB = 1 << 20
MEMORY = {  # in the order in which they are drawn; all that MLX holds, then what it is
    "active_bytes": "all that MLX holds",
    "weights_bytes": "weights",
    "lent_bytes": "KV lent",
    "cached_bytes": "KV cached",
    "owned_bytes": "KV of one row",
}


def page(report: Numbers) -> str:
    """The page."""
    name = report["scenario"]["name"]
    parts = "\n".join([_head(report), *_plots(report), *_tables(report)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(name)} on {escape(report['model'])}</title>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>\n{parts}\n</main></body>\n</html>\n"
    )


def _head(report: Numbers) -> str:
    scenario = report["scenario"]
    shown = {
        "requests": f"{report['requests']:,}",
        "failed": f"{report['errors']:,}",
        "time to first token, p50": seconds(report["ttft_s"]["p50"]),
        "time to first token, p95": seconds(report["ttft_s"]["p95"]),
        "time per output token, p50": seconds(report["itl_s"]["p50"]),
        "output tokens per second": f"{report['output_tokens_per_s']:,.1f}",
        "prompt tokens reused": f"{report['hit_rate']:.1%}",
        "wall time": seconds(report["wall_s"]),
    }
    tiles = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in shown.items()
    )
    early = '<p class="note">It was interrupted.</p>' if report["interrupted"] else ""
    return (
        f"<header><h1>{escape(scenario['name'])}</h1><p>{escape(scenario['about'])}</p>"
        f'<p class="where">{escape(report["model"])} at {escape(report["base"])}, '
        f"{escape(report['began'])}</p>{early}</header><dl>{tiles}</dl>"
    )


def _plots(report: Numbers) -> Iterator[str]:
    course = report["course"]
    if report["requests"] > report["errors"]:
        turns = [(turn["turn"], turn["ttft_s"]) for turn in report["by_turn"]]
        x = linear("turn", min(1, len(turns) - 1), len(turns), "{:.0f}".format, whole=True)
        yield _ttft("ttft-turn", "Time to first token by turn", turns, x)
        due = [(_middle(part), part["ttft_s"]) for part in course]
        title = "Time to first token by when the request was due"
        yield _ttft("ttft-time", title, due, _time(course))
        yield _hit_rate(course)
    if report["pause_histogram"]:
        yield _pauses(report["pause_histogram"])
    if course:
        yield _outcomes(course)
    if report["memory"]:
        yield _memory(report["memory"])
    else:
        yield '<p class="note">The endpoint shows no memory in its metrics.</p>'


def _ttft(name: str, title: str, spreads: Sequence[tuple[float, Numbers]], x: Axis) -> str:
    some = [(at, spread) for at, spread in spreads if spread["p50"] is not None]
    series = [Series(k, [(at, spread[k]) for at, spread in some]) for k in SPREAD]
    y = linear("time to first token", 0, _most(series), short)
    return _figure(title, line_plot(name, title, series, x, y), legend(series))


def _hit_rate(course: Sequence[Numbers]) -> str:
    points = [(_middle(part), part["hit_rate"]) for part in course if part["prompt_tokens"]]
    if not points:
        return '<p class="note">The endpoint does not count prompt tokens.</p>'
    title = "Prompt tokens reused, by when the reply ended"
    y = linear("prompt tokens reused", 0, 1, "{:.0%}".format)
    series = [Series("prompt tokens reused", points)]
    return _figure(title, line_plot("hits", title, series, _time(course), y))


def _pauses(bins: Sequence[Numbers]) -> str:
    bars = [Bar(b["from_s"], b["to_s"], b["count"]) for b in bins]
    title = "Pauses between two arrivals of text, by their length"
    x = logarithmic("length of a pause", bars[0].low, bars[-1].high, short)
    y = linear("pauses", 0, max(b.number for b in bars), "{:,.0f}".format, whole=True)
    return _figure(title, histogram("pauses", title, bars, x, y))


def _outcomes(course: Sequence[Numbers]) -> str:
    kinds = {"replies": "replies", "errors": "failed"}
    series = [Series(v, [(_middle(c), c[k]) for c in course]) for k, v in kinds.items()]
    title = "What became of the requests, by when they ended"
    width = course[0]["to_s"] - course[0]["from_s"]
    y = linear(f"requests in {width:.3g} s", 0, _most(series), "{:,.0f}".format, whole=True)
    plot = line_plot("outcomes", title, series, _time(course), y)
    return _figure(title, plot, legend(series))


def _memory(looks: Sequence[Numbers]) -> str:
    kinds = [kind for kind in MEMORY if any(look.get(kind) for look in looks)]
    series = [
        Series(MEMORY[kind], [(look["at_s"], look.get(kind, 0) / MIB) for look in looks])
        for kind in kinds
    ]
    title = "Memory of the server"
    y = linear("memory", 0, _most(series), "{:,.0f} MiB".format)
    x = linear("seconds after the start", 0, max(looks[-1]["at_s"], 1.0), "{:g}".format)
    return _figure(title, line_plot("memory", title, series, x, y), legend(series))


def _figure(title: str, plot: str, key: str = "") -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{key}{plot}</figure>"


def _tables(report: Numbers) -> Iterator[str]:
    common = ("TTFT p50", "p95", "max", "prompt tokens", "cached", "reused")
    turns = [[t["turn"], t["replies"], *_cells(t)] for t in report["by_turn"]]
    yield _table("By turn", ("turn", "replies", *common), turns)
    groups = [
        [g["group"], g["requests"], g["errors"], *_cells(g), f"{g['output_tokens_per_s']:,.1f}"]
        for g in report["by_group"]
    ]
    yield _table("By clients", ("clients", "requests", "failed", *common, "tokens/s"), groups)
    outcomes = [[f"ended: {k}", n] for k, n in report["finish_reasons"].items()]
    outcomes += [[f"failed: {k}", n] for k, n in report["error_messages"].items()]
    yield _table("What became of the requests", ("outcome", "requests"), outcomes)


def _cells(numbers: Numbers) -> list[str]:
    tokens = (f"{numbers['prompt_tokens']:,}", f"{numbers['cached_tokens']:,}")
    return [*(seconds(numbers["ttft_s"][k]) for k in SPREAD), *tokens, f"{numbers['hit_rate']:.1%}"]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(str(row[0]))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _time(course: Sequence[Numbers]) -> Axis:
    return linear("seconds after the start", 0, course[-1]["to_s"], "{:g}".format)


def _middle(interval: Numbers) -> float:
    return float(interval["from_s"] + interval["to_s"]) / 2


def _most(series: Sequence[Series]) -> float:
    return max((value for one in series for _, value in one.points), default=0.0) or 1.0


def short(value: float) -> str:
    """A time along an axis."""
    return f"{value * 1e3:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
