"""The numbers of a load while it runs and at its end: percentiles, totals, course, JSON.

Knows replies, not how they were got.
"""

from __future__ import annotations

import bisect
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .bench_client import Reply

INTERVALS = 60  # at most, that the course of a run is told in
STEPS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)  # s; their lengths
EDGES = tuple(1e-4 * 10 ** (i / 6) for i in range(37))  # s, of the histogram; to 100 s


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


class Answer(NamedTuple):
    """A request that got its reply. ``due`` is in seconds after the start."""

    group: str
    turn: int
    due: float
    reply: Reply

    @property
    def ended(self) -> float:
        """When the last text was there."""
        return self.due + self.reply.total


class Failure(NamedTuple):
    """A request that got none. Times are in seconds after the start."""

    group: str
    turn: int
    due: float
    ended: float
    message: str


def share(part: int, whole: int) -> float:
    """``part / whole``, 0 of nothing."""
    return part / whole if whole else 0.0


class Results:
    """What became of the requests of a run. ``wall`` is in seconds."""

    def __init__(self, turns: int, groups: Sequence[str] = ()) -> None:
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []
        self.start = 0.0
        self.wall = 0.0
        self.interrupted = False
        self._turns = turns
        self._groups = groups

    def begin(self, now: float) -> None:
        """Takes note of the start, by the clock that all times are given in."""
        self.start = now

    def end(self, now: float) -> None:
        """Takes note of the end."""
        self.wall = now - self.start

    def add(self, group: str, turn: int, due: float, reply: Reply) -> None:
        """Takes note of a reply in the ``turn``-th turn, from 0."""
        self.answers.append(Answer(group, turn, due - self.start, reply))

    def fail(self, group: str, turn: int, due: float, now: float, message: str) -> None:
        """Takes note of an error."""
        self.failures.append(Failure(group, turn, due - self.start, now - self.start, message))

    @property
    def replies(self) -> list[Reply]:
        """All replies, as they came."""
        return [answer.reply for answer in self.answers]

    @property
    def by_turn(self) -> list[list[Reply]]:
        """The replies by turn."""
        turns: list[list[Reply]] = [[] for _ in range(self._turns)]
        for answer in self.answers:
            turns[answer.turn].append(answer.reply)
        return turns

    @property
    def failed(self) -> int:
        """Number of requests that did not end in a reply."""
        return len(self.failures)

    @property
    def errors(self) -> Counter[str]:
        """How often each error came."""
        return Counter(failure.message for failure in self.failures)

    def hit_rate(self) -> float:
        """Cached tokens by prompt tokens over all replies so far."""
        replies = self.replies
        return share(sum(r.cached_tokens for r in replies), sum(r.prompt_tokens for r in replies))

    def failure(self) -> str | None:
        """One line on what went wrong; None if nothing did."""
        errors = self.errors
        if not errors:
            return None
        message, count = errors.most_common(1)[0]
        others = "" if len(errors) == 1 else f" ({count} times; and other errors)"
        requests = self.failed + len(self.answers)
        return f"{self.failed} of {requests} requests failed: {message}{others}"

    def json(self) -> dict[str, Any]:
        """All numbers; the keys are described in ``server.bench_json``."""
        replies = self.replies
        reasons = Counter(reply.finish_reason or "none" for reply in replies)
        return {
            "wall_s": round(self.wall, 3),
            "interrupted": self.interrupted,
            "requests": self.failed + len(replies),
            "errors": self.failed,
            "error_messages": dict(self.errors.most_common()),
            "finish_reasons": dict(reasons.most_common()),
            "uncounted_replies": sum(not r.counted for r in replies),
            "replies_without_cached": sum(not r.cached_counted for r in replies),
            **_totals(replies),
            "output_tokens_per_s": self._per_second(replies),
            "itl_s": _inter_token(replies),
            "pause_s": Spread.of(p for r in replies for p in r.pauses).json(),
            "by_turn": [
                {"turn": number, "replies": len(turn), **_totals(turn)}
                for number, turn in enumerate(self.by_turn, 1)
            ],
            "by_group": [self._group(name) for name in self._groups],
            "pause_histogram": _histogram([p for r in replies for p in r.pauses]),
            "course": self._course(),
        }

    def _per_second(self, replies: Sequence[Reply]) -> float:
        completion = sum(r.completion_tokens for r in replies)
        return round(completion / self.wall, 2) if self.wall else 0.0

    def _group(self, name: str) -> dict[str, Any]:
        replies = [answer.reply for answer in self.answers if answer.group == name]
        failed = sum(failure.group == name for failure in self.failures)
        return {
            "group": name,
            "requests": failed + len(replies),
            "errors": failed,
            **_totals(replies),
            "output_tokens_per_s": self._per_second(replies),
            "itl_s": _inter_token(replies),
        }

    def _course(self) -> list[dict[str, Any]]:
        """The run in intervals of equal length: requests by when they were due, replies by when
        they ended."""
        ends = [a.ended for a in self.answers] + [f.ended for f in self.failures]
        if not ends:
            return []
        step = next((s for s in STEPS if max(ends) / s < INTERVALS), STEPS[-1])
        count = int(max(ends) / step) + 1
        due: list[list[Reply]] = [[] for _ in range(count)]
        ended: list[list[Reply]] = [[] for _ in range(count)]
        failed = [0] * count
        for answer in self.answers:
            due[int(answer.due / step)].append(answer.reply)
            ended[int(answer.ended / step)].append(answer.reply)
        for failure in self.failures:
            failed[int(failure.ended / step)] += 1
        return [
            {
                "from_s": round(i * step, 1),
                "to_s": round((i + 1) * step, 1),
                "replies": len(ended[i]),
                "errors": failed[i],
                **_tokens(ended[i]),
                "ttft_s": Spread.of(r.ttft for r in due[i]).json(),
            }
            for i in range(count)
        ]


def _tokens(replies: Sequence[Reply]) -> dict[str, Any]:
    prompt = sum(r.prompt_tokens for r in replies)
    cached = sum(r.cached_tokens for r in replies)
    return {
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "completion_tokens": sum(r.completion_tokens for r in replies),
        "hit_rate": round(share(cached, prompt), 4),
    }


def _totals(replies: Sequence[Reply]) -> dict[str, Any]:
    return {**_tokens(replies), "ttft_s": Spread.of(r.ttft for r in replies).json()}


def _inter_token(replies: Sequence[Reply]) -> dict[str, float | None]:
    return Spread.of(r.inter_token for r in replies if r.inter_token is not None).json()


def _histogram(values: Sequence[float]) -> list[dict[str, Any]]:
    """Counts by bins that grow by a constant factor, from the first to the last filled one."""
    bins = Counter(min(max(bisect.bisect_right(EDGES, v) - 1, 0), len(EDGES) - 2) for v in values)
    if not bins:
        return []
    return [
        {"from_s": round(EDGES[i], 6), "to_s": round(EDGES[i + 1], 6), "count": bins[i]}
        for i in range(min(bins), max(bins) + 1)
    ]
