"""The tables that a load ends in, for a person at the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

Numbers = dict[str, Any]

TTFT = ("TTFT p50", "p95", "max")
TOKENS = ("prompt", "cached", "share")


def turn_table(report: Numbers) -> Table:
    """Time to first token and reuse, one line a turn and one for all."""
    table = _table("by turn", "turn", "replies", *TTFT, *TOKENS)
    turns = report["by_turn"]
    for turn in turns:
        last = turn is turns[-1]
        table.add_row(str(turn["turn"]), str(turn["replies"]), *_cells(turn), end_section=last)
    replies = report["requests"] - report["errors"]
    table.add_row("all", str(replies), *_cells(report))
    return table


def group_table(report: Numbers) -> Table:
    """The same by group of clients."""
    table = _table("by clients", "clients", "requests", "errors", *TTFT, "share", "tok/s")
    for group in report["by_group"]:
        counts = (str(group["requests"]), str(group["errors"]))
        *ttft, _, _, hits = _cells(group)
        table.add_row(group["group"], *counts, *ttft, hits, f"{group['output_tokens_per_s']:,.1f}")
    return table


def total_table(report: Numbers) -> Table:
    """What holds for the run as a whole."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, key in (("time per output token", "itl_s"), ("pause between texts", "pause_s")):
        spread = " / ".join(seconds(v) for v in report[key].values())
        table.add_row(f"{name}, p50 / p95 / max", spread)
    table.add_row("output tokens", f"{report['completion_tokens']:,}")
    table.add_row("output tokens per second", f"{report['output_tokens_per_s']:,.1f}")
    table.add_row("wall time", seconds(report["wall_s"]))
    table.add_row("requests / errors", f"{report['requests']} / {report['errors']}")
    if report["uncounted_replies"]:
        table.add_row("replies without usage", str(report["uncounted_replies"]))
    if report["replies_without_cached"]:
        untold = str(report["replies_without_cached"])
        table.add_row("replies that do not tell what was reused", untold)
    return table


def seconds(value: float | None) -> str:
    """A time for a person to read; a dash for none."""
    if value is None:
        return "–"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cells(numbers: Numbers) -> list[str]:
    return [
        *(seconds(v) for v in numbers["ttft_s"].values()),
        f"{numbers['prompt_tokens']:,}",
        f"{numbers['cached_tokens']:,}",
        f"{numbers['hit_rate']:.1%}",
    ]
