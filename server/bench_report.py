"""The numbers of a load test while it runs and at its end: percentiles, JSON, table.

Knows replies, not how they were got.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from server.bench_client import Reply


class Spread(NamedTuple):
    """Percentiles and largest value; all None for no values."""

    p50: float | None
    p95: float | None
    max: float | None

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """The spread of ``values``; p95 is the smallest one that 95% do not exceed."""
        ordered = sorted(values)
        if not ordered:
            return Spread(None, None, None)
        rank = -(-95 * len(ordered) // 100) - 1
        return Spread(statistics.median(ordered), ordered[rank], ordered[-1])

    def json(self) -> dict[str, float | None]:
        """As a JSON object, rounded to a tenth of a millisecond."""
        return {k: None if v is None else round(v, 4) for k, v in self._asdict().items()}


def share(part: int, whole: int) -> float:
    """``part / whole``, 0 of nothing."""
    return part / whole if whole else 0.0


class Results:
    """Replies and errors of a run, by turn. ``wall`` is in seconds."""

    def __init__(self, turns: int) -> None:
        self.by_turn: list[list[Reply]] = [[] for _ in range(turns)]
        self.errors: Counter[str] = Counter()
        self.wall = 0.0
        self.interrupted = False

    @property
    def replies(self) -> list[Reply]:
        """All replies, turn by turn."""
        return [reply for turn in self.by_turn for reply in turn]

    @property
    def failed(self) -> int:
        """Number of requests that did not end in a reply."""
        return self.errors.total()

    def hit_rate(self) -> float:
        """Cached tokens by prompt tokens over all replies so far."""
        replies = self.replies
        return share(sum(r.cached_tokens for r in replies), sum(r.prompt_tokens for r in replies))

    def failure(self) -> str | None:
        """One line on what went wrong; None if nothing did."""
        if not self.errors:
            return None
        message, count = self.errors.most_common(1)[0]
        others = "" if len(self.errors) == 1 else f" ({count} times; and other errors)"
        requests = self.failed + len(self.replies)
        return f"{self.failed} of {requests} requests failed: {message}{others}"

    def json(self) -> dict[str, Any]:
        """All numbers; the keys are described in ``server.bench``."""
        replies = self.replies
        completion = sum(r.completion_tokens for r in replies)
        return {
            "wall_s": round(self.wall, 3),
            "interrupted": self.interrupted,
            "requests": self.failed + len(replies),
            "errors": self.failed,
            "error_messages": dict(self.errors.most_common()),
            "uncounted_replies": sum(not r.counted for r in replies),
            **_totals(replies),
            "output_tokens_per_s": round(completion / self.wall, 2) if self.wall else 0.0,
            "itl_s": Spread.of(r.inter_token for r in replies if r.inter_token is not None).json(),
            "pause_s": Spread.of(p for r in replies for p in r.pauses).json(),
            "by_turn": [
                {"turn": number, "replies": len(turn), **_totals(turn)}
                for number, turn in enumerate(self.by_turn, 1)
            ],
        }


def _totals(replies: Sequence[Reply]) -> dict[str, Any]:
    prompt = sum(r.prompt_tokens for r in replies)
    cached = sum(r.cached_tokens for r in replies)
    return {
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "completion_tokens": sum(r.completion_tokens for r in replies),
        "hit_rate": round(share(cached, prompt), 4),
        "ttft_s": Spread.of(r.ttft for r in replies).json(),
    }


def turn_table(results: Results) -> Table:
    """Time to first token and reuse, one line a turn and one for all."""
    table = Table(title="by turn", title_justify="left")
    table.add_column("turn")
    for name in ("replies", "TTFT p50", "p95", "max", "prompt", "cached", "share"):
        table.add_column(name, justify="right")
    rows = [(str(n), turn) for n, turn in enumerate(results.by_turn, 1)]
    for name, replies in (*rows, ("all", results.replies)):
        totals = _totals(replies)
        table.add_row(
            name,
            str(len(replies)),
            *(seconds(v) for v in Spread.of(r.ttft for r in replies)),
            f"{totals['prompt_tokens']:,}",
            f"{totals['cached_tokens']:,}",
            f"{totals['hit_rate']:.1%}",
            end_section=name == str(len(rows)),
        )
    return table


def total_table(results: Results) -> Table:
    """What holds for the run as a whole."""
    numbers = results.json()
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, key in (("time per output token", "itl_s"), ("pause between texts", "pause_s")):
        spread = " / ".join(seconds(v) for v in numbers[key].values())
        table.add_row(f"{name}, p50 / p95 / max", spread)
    table.add_row("output tokens", f"{numbers['completion_tokens']:,}")
    table.add_row("output tokens per second", f"{numbers['output_tokens_per_s']:,.1f}")
    table.add_row("wall time", seconds(numbers["wall_s"]))
    table.add_row("requests / errors", f"{numbers['requests']} / {numbers['errors']}")
    if numbers["uncounted_replies"]:
        table.add_row("replies without usage", str(numbers["uncounted_replies"]))
    return table


def seconds(value: float | None) -> str:
    """A time for a person to read; a dash for none."""
    if value is None:
        return "–"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
