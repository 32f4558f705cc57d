"""An engine without a model: rows, a prefix cache of exact prefixes, a budget, and a clock."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from cache.prefix_cache import NO_HIT, Hit
from engine.engine import Choice


@dataclass(eq=False)
class FakeRow:
    id: str
    tokens: array
    length: int

    @property
    def remaining(self) -> int:
        return len(self.tokens) - 1 - self.length


@dataclass
class FakeEngine:
    """Each token's reply is ``last + 1``; a prefill token costs ``prefill_cost`` seconds."""

    budget: int = 1 << 30
    prefill_cost: float = 1e-3
    decode_cost: float = 1e-2
    vocab_size: int = 1 << 20
    batchable: bool = True
    now: float = 0.0
    rows: list[FakeRow] = field(default_factory=list)
    prefilled: list[tuple[str, int]] = field(default_factory=list)
    cached: set[tuple[int, ...]] = field(default_factory=set)
    inflight: list[FakeRow] = field(default_factory=list)
    most_rows: int = 0

    def clock(self) -> float:
        return self.now

    @property
    def busy(self) -> bool:
        return bool(self.inflight)

    @property
    def used(self) -> int:
        return sum(len(r.tokens) for r in self.rows)

    def fits(self, tokens: int) -> bool:
        return tokens <= self.budget

    def lookup(self, tokens: Sequence[int]) -> Hit:
        whole = tuple(tokens[:-1])
        best = 0
        for prefix in self.cached:
            common = 0
            for a, b in zip(prefix, whole, strict=False):
                if a != b:
                    break
                common += 1
            best = max(best, common)
        return NO_HIT._replace(length=best, whole=best, kv_length=best)

    def admit(self, request_id, tokens, sampling, boundaries=()):
        if self.used + len(tokens) > self.budget:
            return None
        row = FakeRow(request_id, tokens, self.lookup(tokens).length)
        self.rows.append(row)
        self.most_rows = max(self.most_rows, len(self.rows))
        return row

    def mark(self, row: FakeRow, position: int) -> None:
        assert row in self.rows

    def prefill(self, row: FakeRow, most: int) -> int:
        count = min(most, row.remaining)
        assert count > 0
        row.length += count
        self.now += count * self.prefill_cost
        self.prefilled.append((row.id, count))
        self.cached.add(tuple(row.tokens[: row.length]))
        return count

    def make_room(self, row: FakeRow) -> bool:
        return self.used + len(self.rows) <= self.budget

    def submit(self, rows: Sequence[FakeRow]) -> None:
        assert not self.inflight
        assert all(r in self.rows and not r.remaining for r in rows)
        for row in rows:
            row.length += 1
        self.inflight = list(rows)

    def collect(self) -> list[Choice]:
        rows, self.inflight = self.inflight, []
        self.now += self.decode_cost
        choices = []
        for row in rows:
            token = row.tokens[-1] + 1
            row.tokens.append(token)
            choices.append(Choice(row, token, None, ()))
        return choices

    def release(self, row: FakeRow) -> None:
        assert row not in self.inflight
        self.rows.remove(row)
        if row.length:
            self.cached.add(tuple(row.tokens[: row.length]))
