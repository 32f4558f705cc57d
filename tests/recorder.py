"""The engine with a record of what went through it, against which its own books are held."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

from cache.keeping import Keeping
from cache.loan import ANYBODY, NOBODY, Borrower
from cache.namespace import Namespace
from cache.tokens import common_length
from engine.decoding import Outcome
from engine.engine import Engine
from engine.loader import Loaded
from engine.network import Attention
from engine.rows import Row
from engine.sampling import RowSampling
from engine.variant import BASE, Variant
from scheduler.request import Request
from scheduler.stats import RequestStats, SchedulerStats

from .drafts import always_worth_it
from .tenants import Users


class Recorder(Engine):
    """The engine, with a record of what went through it and a naive model of its cache.

    ``known`` holds every sequence whose KV was computed, ``ends`` those after which layers that
    cannot be cut must have left their state.
    """

    def __init__(
        self,
        model: Loaded,
        attention: Attention,
        keeping: Keeping | None = None,
        draft: Loaded | None = None,
    ) -> None:
        super().__init__(
            model, kv_memory=1 << 40, attention=attention, keeping=keeping, draft=draft
        )
        if draft is not None:
            always_worth_it(self)
        self.drafted = self.accepted = 0
        self.requests: dict[str, Request] = {}
        self.prompt_inputs: Counter[str] = Counter()
        self.inputs = 0
        self.known: set[tuple[Namespace, bytes]] = set()
        self.ends: set[tuple[Namespace, bytes]] = set()
        self.users = Users()
        self.forgets = False  # whether a budget may have made the cache forget
        self.wrong_hits: list[str] = []

    def admit(
        self,
        request_id: str,
        tokens: array[int],
        sampling: RowSampling,
        boundaries: Sequence[int] = (),
        variant: Variant = BASE,
        borrower: Borrower = ANYBODY,
    ) -> Row | None:
        name = self.namespace(variant, borrower.domain)
        least, most = self._expected(tokens[:-1], name)
        row = super().admit(request_id, tokens, sampling, boundaries, variant, borrower)
        if row is None:
            return None
        if not self.forgets and not least <= row.length <= most:
            self.wrong_hits.append(f"{request_id}: {row.length} cached, not {least} to {most}")
        loan = self.users.loan(name, tokens[: row.length], borrower.tenant)
        wrong = sum(row.loan.lenders.values()) != row.length
        if wrong or (not self.forgets and row.loan != loan):
            self.wrong_hits.append(f"{request_id}: {row.loan} of {row.length}, not {loan}")
        self.users.add(name, tokens[: row.length], borrower.tenant)
        return row

    def prefill(self, row: Row, most: int) -> int:
        context = row.length
        count = super().prefill(row, most)
        self._record(row, range(context, row.length))
        state = self._computed(row)
        if row.length in self.requests[row.id].boundaries or not row.remaining:
            self.ends.add(state)
        return count

    def collect(self) -> list[Outcome]:
        outcomes = super().collect()
        for row, choices, proposed, _ in outcomes:
            self._record(row, range(row.length - len(choices), row.length))
            self.drafted += proposed
            self.accepted += len(choices) - 1
        return outcomes

    def release(self, row: Row) -> None:
        super().release(row)
        self.ends.add(self._computed(row))

    def _computed(self, row: Row) -> tuple[Namespace, bytes]:
        tenant, domain = row.borrower
        name, tokens = self.namespace(row.variant, domain), row.tokens[: row.length]
        self.known.add((name, tokens.tobytes()))
        self.users.add(name, tokens, tenant)
        return name, tokens.tobytes()

    def _record(self, row: Row, positions: range) -> None:
        prompt = len(self.requests[row.id].prompt)
        self.inputs += len(positions)
        self.prompt_inputs[row.id] += sum(p < prompt for p in positions)

    def _expected(self, wanted: array[int], name: Namespace) -> tuple[int, int]:
        """The fewest and the most tokens that the cache must give."""
        own = (known for owner, known in self.known if owner == name)
        most = max((common_length(array("i", k), wanted, 0) for k in own), default=0)
        if not self.stateful:
            return most, most
        text = wanted.tobytes()
        ends = (end for owner, end in self.ends if owner == name)
        return max((len(e) // 4 for e in ends if text.startswith(e)), default=0), most


class Tally(SchedulerStats, RequestStats):
    """Sums up the prompt tokens that the scheduler says were computed."""

    def __init__(self) -> None:
        self.prompt_tokens = 0

    def of(self, variant: Variant, tenant: str = NOBODY) -> RequestStats:
        return self

    def computed(self, tokens: int) -> None:
        self.prompt_tokens += tokens
