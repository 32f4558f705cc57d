"""An engine without a model (rows, exact prefixes, a budget, a clock); a scheduler on a lead."""

from __future__ import annotations

import queue
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from cache.lease import NO_HIT, Hit
from cache.loan import ANYBODY, NO_LOAN, Borrower, Loan
from engine.decoding import Choice, Outcome
from engine.variant import BASE, Variant
from scheduler.events import Event, Finished
from scheduler.request import Request

PATIENCE = 20.0  # seconds after which a test gives up; none waits that long


@dataclass(eq=False)
class FakeRow:
    id: str
    tokens: array
    length: int
    variant: Variant = BASE
    borrower: Borrower = ANYBODY
    loan: Loan = NO_LOAN

    @property
    def namespace(self) -> tuple[Variant, str]:
        return self.variant, self.borrower.domain

    def cut(self, count: int) -> None:
        del self.tokens[count:]
        self.length = min(self.length, max(0, count - 1))

    @property
    def remaining(self) -> int:
        return len(self.tokens) - 1 - self.length


@dataclass
class FakeEngine:
    """Each token's reply is ``last + 1``; a prefill token costs ``prefill_cost`` seconds.

    A decode step gives each row one token and ``accepted`` more, of one more proposed.
    """

    budget: int = 1 << 30
    prefill_cost: float = 1e-3
    decode_cost: float = 1e-2
    vocab_size: int = 1 << 20
    batchable: bool = True
    now: float = 0.0
    rows: list[FakeRow] = field(default_factory=list)
    prefilled: list[tuple[str, int]] = field(default_factory=list)
    cached: set[tuple[tuple[Variant, str], tuple[int, ...]]] = field(default_factory=set)
    inflight: list[FakeRow] = field(default_factory=list)
    most_rows: int = 0
    accepted: int = 0

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

    def lookup(
        self, tokens: Sequence[int], variant: Variant = BASE, borrower: Borrower = ANYBODY
    ) -> Hit:
        whole = tuple(tokens[:-1])
        best = 0
        for owner, prefix in self.cached:
            if owner != (variant, borrower.domain):
                continue
            common = 0
            for a, b in zip(prefix, whole, strict=False):
                if a != b:
                    break
                common += 1
            best = max(best, common)
        return NO_HIT._replace(length=best, whole=best, kv_length=best)

    def admit(self, request_id, tokens, sampling, boundaries=(), variant=BASE, borrower=ANYBODY):
        if self.used + len(tokens) > self.budget:
            return None
        hit = self.lookup(tokens, variant, borrower).length
        row = FakeRow(request_id, tokens, hit, variant, borrower)
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
        self.cached.add((row.namespace, tuple(row.tokens[: row.length])))
        return count

    def make_room(self, row: FakeRow) -> bool:
        return self.used + len(self.rows) <= self.budget

    def submit(self, rows: Sequence[FakeRow], left: Sequence[int] | None = None) -> None:
        assert not self.inflight
        assert all(r in self.rows and not r.remaining for r in rows)
        for row in rows:
            row.length += 1
        self.inflight = list(rows)

    def collect(self) -> list[Outcome]:
        rows, self.inflight = self.inflight, []
        self.now += self.decode_cost
        outcomes = []
        for row in rows:
            first = row.tokens[-1] + 1
            tokens = range(first, first + 1 + self.accepted)
            row.tokens.extend(tokens)
            row.length += self.accepted
            proposed = self.accepted + 1 if self.accepted else 0
            outcomes.append(Outcome(row, [Choice(t, None, ()) for t in tokens], proposed))
        return outcomes

    def release(self, row: FakeRow) -> None:
        assert row not in self.inflight
        self.rows.remove(row)
        if row.length:
            self.cached.add((row.namespace, tuple(row.tokens[: row.length])))


@dataclass
class StepByStep:
    """A scheduler that does a step only when told to: each is an item of ``steps``.

    A step is the events that it yields, or the error that it raises.
    """

    steps: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    added: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    taken_in: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    open: int = 0

    @property
    def has_work(self) -> bool:
        return self.open > 0

    def add(self, request: Request) -> None:
        self.threads.add(threading.get_ident())
        self.added.append(request)
        self.open += 1
        self.taken_in.release()

    def abort(self, request_id: str, reason: str = "abort") -> None:
        self.aborted.append(request_id)
        self.taken_in.release()

    def step(self) -> list[Event]:
        self.threads.add(threading.get_ident())
        todo = self.steps.get(timeout=PATIENCE)
        if isinstance(todo, BaseException):
            raise todo
        self.open -= sum(isinstance(e, Finished) for e in todo)
        return todo

    def wait_for(self, messages: int) -> None:
        """Until so many more requests and aborts have come in."""
        for _ in range(messages):
            assert self.taken_in.acquire(timeout=PATIENCE)
