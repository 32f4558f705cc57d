"""The table of a comparison: rows by scenario and measure, one column a server."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from server.bench_scenario import Scenario

Numbers = dict[str, Any]


class Row(NamedTuple):
    """One line of the table; ``read`` makes a cell of a scenario's numbers."""

    scenario: str
    measure: str
    read: Callable[[Numbers], str]


def _ttft(turn: int, which: str) -> Callable[[Numbers], str]:
    return lambda n: f"{n['by_turn'][turn]['ttft_s'][which]:.2f}"


def _first_and_last(n: Numbers) -> str:
    return f"{_ttft(0, 'p50')(n)} / {_ttft(-1, 'p50')(n)}"


def _growth(size: str) -> Callable[[Numbers], str]:
    return lambda n: (
        f"{n[size]['cold_ttft_s']:.2f} / {n[size]['warm_ttft_p50_s']:.3f} "
        f"({n[size]['cold_by_warm']:.0f}x)"
    )


def _beside(n: Numbers) -> str:
    return f"{n['ttft_beside_p50_s']:.2f} ({n['ttft_beside_by_alone']:.2f}x)"


def _wall(n: Numbers) -> str:
    return f"{n['wall_s']:.1f}"


def _by_floor(n: Numbers) -> str:
    return f"{n['wall_by_floor']:.2f}x" if "wall_by_floor" in n else "–"


def _by_bare(size: str) -> Callable[[Numbers], str]:
    def read(n: Numbers) -> str:
        ratios = [t["ttft_by_bare"] for t in n[size]["turns"][1:] if "ttft_by_bare" in t]
        return f"{statistics.median(ratios):.2f}x" if ratios else "–"

    return read


def _memory(n: Numbers) -> str:
    return f"{n['peak_rss_mib']:,}"


def _spread(key: str, which: Sequence[str]) -> Callable[[Numbers], str]:
    return lambda n: " / ".join("–" if n[key][w] is None else f"{n[key][w]:.2f}" for w in which)


def _turns(n: Numbers) -> str:
    turns = [turn["ttft_s"]["p50"] for turn in n["by_turn"]]
    return " / ".join("–" if t is None else f"{t:.2f}" for t in (turns[0], turns[-1]))


def _pace(n: Numbers) -> str:
    pace = n["itl_s"]["p50"]
    return "–" if pace is None else f"{pace * 1e3:.1f}"


def _reused(n: Numbers) -> str:
    untold = n["replies_without_cached"] == n["requests"] - n["errors"]
    return "not told" if untold else f"{n['hit_rate']:.0%}"


MEASURES = (
    ("wall time, s", _wall),
    ("requests", lambda n: f"{n['requests']}"),
    ("TTFT p50 / p95 / max, s", _spread("ttft_s", ("p50", "p95", "max"))),
    ("TTFT p50, first / last turn, s", _turns),
    ("time per output token p50, ms", _pace),
    ("output tokens per second", lambda n: f"{n['output_tokens_per_s']:.1f}"),
    ("prompt tokens reused", _reused),
    ("peak resident memory, MiB", _memory),
)

AGENTS = "agents: 16 agents x 3 turns, 4000 shared tokens, 48 new"
CROWD = "crowd: 32 agents x 2 turns, 8000 shared tokens, 32 new"
PRIVATE = "private: 8 agents x 3 turns, nothing in common"
GROW_10K = "growth: one conversation of 10k tokens, 1-4% a turn"
GROW_28K = "growth: one conversation of 28k tokens, 1-4% a turn"
STALL = "stall: a cold 10k-token prompt meets 8 running streams"

ROWS = (
    Row(AGENTS, "wall time, s", _wall),
    Row(AGENTS, "wall time by the raw floor's", _by_floor),
    Row(AGENTS, "TTFT p50, first / last turn, s", _first_and_last),
    Row(AGENTS, "time per output token p50, ms", lambda n: f"{n['itl_s']['p50'] * 1e3:.1f}"),
    Row(AGENTS, "prompt tokens reused", lambda n: f"{n['hit_rate']:.0%}"),
    Row(AGENTS, "peak resident memory, MiB", _memory),
    Row(CROWD, "wall time, s", _wall),
    Row(CROWD, "wall time by the raw floor's", _by_floor),
    Row(CROWD, "TTFT max, first turn, s", _ttft(0, "max")),
    Row(CROWD, "prompt tokens reused", lambda n: f"{n['hit_rate']:.0%}"),
    Row(CROWD, "peak resident memory, MiB", _memory),
    Row(PRIVATE, "wall time, s", _wall),
    Row(PRIVATE, "peak resident memory, MiB", _memory),
    Row(GROW_10K, "TTFT cold / warm, s", _growth("10k")),
    Row(GROW_10K, "warm TTFT by a bare prefill of the same tokens", _by_bare("10k")),
    Row(GROW_28K, "TTFT cold / warm, s", _growth("28k")),
    Row(GROW_28K, "warm TTFT by a bare prefill of the same tokens", _by_bare("28k")),
    Row(STALL, "longest pause of a stream, ms", lambda n: f"{n['longest_pause_s'] * 1e3:.0f}"),
    Row(STALL, "the prompt's TTFT, s (next to alone)", _beside),
)


def load_rows(scenario: Scenario) -> tuple[Row, ...]:
    """Rows for any scenario's report."""
    return tuple(Row(scenario.name, measure, read) for measure, read in MEASURES)


def markdown(
    results: dict[str, dict[str, Numbers]], servers: list[str], rows: Sequence[Row] = ROWS
) -> str:
    """The table as Markdown, with the rows of the scenarios in ``results``."""
    lines = [
        "| scenario | measure | " + " | ".join(servers) + " |",
        "|---|---|" + "---|" * len(servers),
    ]
    shown = ""
    for row in rows:
        numbers = results.get(row.scenario.partition(":")[0])
        if numbers is None:
            continue
        cells = " | ".join(_cell(row, numbers[server]) for server in servers)
        lines.append(
            f"| {row.scenario if row.scenario != shown else ''} | {row.measure} | {cells} |"
        )
        shown = row.scenario
    return "\n".join(lines) + "\n"


def _cell(row: Row, numbers: Numbers) -> str:
    if "failure" in numbers:
        return "failed"
    if numbers.get("errors"):
        return f"{numbers['errors']} errors"
    return row.read(numbers)
