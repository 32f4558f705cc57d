"""The synchronous core: which requests run, what the next step is, and what came of it.

Owned by the engine thread. Knows the engine by its methods only; no threads, no clients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from engine.adapter_files import AdapterError
from engine.decoding import Choice
from engine.engine import MOST_CHUNK
from engine.rows import Row

from . import claims
from .costs import Costs
from .engine_like import EngineLike
from .entry import NEVER, Entry
from .events import UNFIT, UNFOLLOWED, Event, FinishReason, Token, TokenLogprob
from .ledger import Account, Ledger
from .neighbours import ALONE
from .order import MOST_PASSED_OVER, leader, next_prefill
from .pace import PrefillPace
from .queue import FairQueue
from .request import Request
from .stats import NO_STATS, SchedulerStats

log = logging.getLogger("commons.scheduler")

LEAST_CHUNK = 32  # tokens; below this the fixed costs of a pass dominate
IDLE_FACTOR = 4  # with nothing decoding, a chunk may take so many stall targets


class Scheduler:
    """Continuous batching over one engine.

    ``max_rows`` bounds the rows in the engine. A prefill chunk next to running decodes is
    sized so that a decode step and the chunks before it take ``stall_target`` seconds. ``ledger``
    may be exchanged for one that several share, before the first request.
    """

    def __init__(
        self,
        engine: EngineLike,
        *,
        max_rows: int = 64,
        stall_target: float = 0.1,
        stats: SchedulerStats = NO_STATS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.engine = engine
        self.max_rows = max_rows if engine.batchable else 1
        self.stall_target = stall_target
        self.stats = stats
        self.clock = clock
        self.waiting = FairQueue()
        self.prefilling: list[Entry] = []
        self.decoding: list[Entry] = []
        self.pace = PrefillPace()
        self.costs = Costs()
        self.ledger = Ledger()
        self.preemptions = 0
        self.releases = 0  # times that a row gave its memory back
        self.neighbours = ALONE
        self._entries: dict[str, Entry] = {}
        self._aborted: dict[str, FinishReason] = {}
        self._decode_seconds = 0.0
        self._submitted = 0.0
        self._blocked = False  # nothing has changed since admission said: not now

    # what callers do

    def add(self, request: Request) -> None:
        """Accepts a request; it will end in exactly one ``Finished``."""
        assert request.id not in self._entries
        stats = self.stats.of(request.variant, request.tenant.name)
        account = self.ledger.join(request.tenant)
        entry = Entry(request, self.engine.vocab_size, self.clock(), stats, account)
        self._entries[request.id] = entry
        self.waiting.add(entry)
        self._blocked = False

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        """Ends a request with the next step; one that has ended is left alone."""
        if request_id in self._entries:
            self._aborted[request_id] = reason

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has anything to do."""
        return bool(self._entries)

    @property
    def running(self) -> int:
        """Number of requests that have been admitted."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def stalled(self) -> bool:
        """Whether nothing can be done before another model gives memory back."""
        barred = self._blocked or self.neighbours.first
        return barred and self.has_work and not (self.running or self._aborted)

    def unblock(self) -> None:
        """Another model has given memory back."""
        self._blocked = False

    @property
    def step_seconds(self) -> float:
        """What a decode step takes just now."""
        return self._decode_seconds if self.decoding else 0.0

    def step(self, *, overlap: bool = True) -> list[Event]:
        """Does the next piece of work; returns what can be delivered.

        Either collects a decode step and submits the next one, so that delivery overlaps with
        it; or, when prompts wait or there is no ``overlap``, collects only, and goes on in the
        following call, so that tokens are not held back for the length of a chunk.
        """
        events: list[Event] = []
        if self.engine.busy:
            self._collect(events)
        elif not self._aborted:
            self._admit(events)
            self._prefill()
        self._sweep_aborted(events)
        if not events or (overlap and not self._prompts_waiting):
            self._submit(events)
        return events

    # phases

    @property
    def _prompts_waiting(self) -> bool:
        barred = self._blocked or self.neighbours.first
        return bool(self.prefilling or (self.waiting and not barred))

    def _collect(self, events: list[Event]) -> None:
        outcomes = self.engine.collect()
        now = self.clock()
        self._decode_seconds = now - self._submitted
        part = self._decode_seconds / len(outcomes)
        self.costs.decoded(part)
        for row, choices, proposed, end in outcomes:
            entry = self._entries[row.id]
            entry.charge(part)
            if proposed:
                entry.stats.drafted(proposed, len(choices) - 1)
            if end == "error":
                entry.generated += len(choices)  # the row has them
                self._withdraw(entry)
                self._end(entry, "error", events, UNFOLLOWED)
                continue
            for choice in choices:
                if self._deliver(entry, choice, now, events, bool(end) and choice is choices[-1]):
                    break
        self.stats.step("decode", self._decode_seconds, len(outcomes))

    def _deliver(
        self, entry: Entry, choice: Choice, now: float, events: list[Event], last: bool
    ) -> bool:
        """Hands on a token; whether it was the request's last, as it is at a grammar's end."""
        request = entry.request
        entry.count(now)
        if choice.token in request.stop_token_ids:
            self._finish(entry, "stop", events)
            return True
        logprob = None if choice.logprob is None else TokenLogprob(choice.logprob, choice.top)
        events.append(Token(request.id, choice.token, logprob))
        if last or entry.generated >= request.max_tokens:
            self._finish(entry, "stop" if last else "length", events)
            return True
        return False

    def _admit(self, events: list[Event]) -> None:
        """Starts waiting requests in their order, as far as there are rows and memory."""
        if not self.waiting or self._blocked or self.neighbours.first:
            return
        if self.running >= self.max_rows and not claims.possible(self._rows, self.ledger):
            self._blocked = True
            return
        hits = {e: self._lookup(e) for e in self.waiting}
        refused: dict[Account, Entry] = {}  # for lack of memory, each by its tenant
        for entry in self.waiting.ranked(hits):
            if entry.account in refused or self._follows(entry, hits[entry]):
                continue
            if self.running >= self.max_rows:
                found = claims.for_row(entry, self._rows, self.ledger, self.max_rows)
                if not self._displace(found):
                    self._blocked = True
                    break
            if self._start(entry, events):
                for other in refused.values():
                    other.passed_over += 1
            elif entry.passed_over < MOST_PASSED_OVER:
                refused[entry.account] = entry
            else:
                break

    @property
    def _rows(self) -> list[Entry]:
        return self.prefilling + self.decoding

    def _lookup(self, entry: Entry) -> int:
        request = entry.request
        return self.engine.lookup(entry.tokens, request.variant, request.borrower).length

    def _start(self, entry: Entry, events: list[Event]) -> bool:
        """Gives an entry a row, or ends it; False where there is no memory now."""
        request = entry.request
        while True:
            try:
                row = self.engine.admit(
                    request.id,
                    entry.tokens,
                    entry.sampling,
                    entry.boundaries,
                    request.variant,
                    request.borrower,
                )
            except AdapterError as error:
                log.error("adapter: %s", error, extra=request.log_context)
                self.waiting.remove(entry)
                self._end(entry, "error", events, "The adapter cannot be loaded.")
                return True
            if row is not None:
                self._started(entry, row)
                return True
            if not self._displace(claims.for_memory(entry, self._rows, self.ledger)):
                self._refused(entry, events)
                return False

    def _displace(self, found: Entry | None) -> bool:
        """Whether a running request has made way for a waiting one."""
        if found is not None:
            found.displaced += 1
            self._put_back(found)
        return found is not None

    def _refused(self, entry: Entry, events: list[Event]) -> None:
        """No memory now: wait for rows to end; alone, there is nothing to wait for."""
        self._blocked = bool(self.running or self.neighbours.rows)
        if not self._blocked:
            self.waiting.remove(entry)
            self._end(entry, "length" if entry.generated else "error", events)

    def _started(self, entry: Entry, row: Row) -> None:
        now = self.clock()
        self.waiting.admit(entry)
        entry.row = row
        entry.passed_over = 0
        if entry.admitted == NEVER:
            entry.admitted, entry.hit = now, row.length
            entry.stats.admitted(now - entry.accepted, len(entry.tokens), row.length)
            self.stats.started(entry.request.id)
            for lender, tokens in row.loan.lenders.items():
                entry.stats.lent(lender, tokens)
            for share in row.loan.shares:
                self.ledger.spread(share, entry.account, self.costs.prompt_token)
        left = min(entry.request.max_tokens - entry.generated, entry.account.reply)
        entry.promise(self.costs.of(row.remaining, left))
        (self.prefilling if row.remaining else self.decoding).append(entry)

    def _follows(self, entry: Entry, cached: int) -> bool:
        """Whether a row that is being prefilled will soon have more of this prompt."""
        found = leader(entry, cached, self.prefilling)
        entry.following = found is not None
        if found is not None:
            self.engine.mark(*found)
        return entry.following

    def _prefill(self) -> None:
        """Runs chunks until the time that running decodes may be kept waiting is used up."""
        if not self.prefilling:
            return
        budget = self.stall_target - self._decode_seconds - self.neighbours.seconds
        budget = max(budget, self.stall_target / 4)
        if not (self.decoding or self.neighbours.seconds):
            budget = IDLE_FACTOR * self.stall_target
        deadline = self.clock() + budget
        while self.prefilling and not self._aborted:
            entry = next_prefill(self.prefilling)
            row = entry.row
            assert row is not None
            left = deadline - self.clock()
            size = self.pace.tokens(left, row.length, least=LEAST_CHUNK, most=MOST_CHUNK)
            whole = min(row.remaining, MOST_CHUNK)
            if size < whole and left < budget / 2:
                break
            self._chunk(entry, row, size)
            if self.waiting or self.clock() >= deadline:
                break

    def _chunk(self, entry: Entry, row: Row, size: int) -> None:
        start, context = self.clock(), row.length
        count = self.engine.prefill(row, size)
        seconds = self.clock() - start
        self.pace.record(count, context, seconds)
        self.costs.prefilled(count, seconds)
        entry.charge(seconds)
        in_prompt = max(0, min(row.length, len(entry.request.prompt)) - context)
        entry.computed += in_prompt
        entry.stats.computed(in_prompt)
        self.stats.step("prefill", seconds, 1)
        self._blocked = False  # followers may start on what was just computed
        if not row.remaining:
            self.prefilling.remove(entry)
            self.decoding.append(entry)

    def _submit(self, events: list[Event]) -> None:
        if self.engine.busy:
            return
        while self.decoding and not self._make_room(events):
            pass
        if not self.decoding:
            return
        rows, left = [], []
        for entry in self.decoding:
            assert entry.row is not None
            rows.append(entry.row)
            left.append(entry.request.max_tokens - entry.generated)
            if entry.row.length < len(entry.request.prompt):
                entry.computed += 1  # the last prompt token enters with the first decode step
                entry.stats.computed(1)
        self._submitted = self.clock()
        self.engine.submit(rows, left)

    def _make_room(self, events: list[Event]) -> bool:
        """Whether every decoding row has a place for its token; preempts one if not."""
        for entry in list(self.decoding):
            assert entry.row is not None
            if not self.engine.make_room(entry.row):
                self._preempt(events)
                return False
        return True

    def _preempt(self, events: list[Event]) -> None:
        """Puts a row back into the queue, a batch one or the youngest.

        The only row left starts anew, where that makes the room in which growing would have
        meant to hold its KV twice; where even that is too much, it ends with ``length``.
        """
        youngest = claims.in_need(self._rows, self.ledger)
        assert youngest.row is not None
        alone = self.running == 1
        if alone and not self.engine.fits(len(youngest.row.tokens) + 1):
            self._finish(youngest, "length", events)
            return
        self._put_back(youngest)
        self._blocked = not alone

    def _put_back(self, entry: Entry) -> None:
        """Takes a row's place; the request waits again."""
        self._withdraw(entry)
        self.waiting.add(entry)
        self.preemptions += 1
        entry.stats.preempted()

    # ends

    def _sweep_aborted(self, events: list[Event]) -> None:
        if self.engine.busy:
            return
        for request_id, reason in self._aborted.items():
            entry = self._entries.get(request_id)
            if entry is not None:
                self._finish(entry, reason, events)
        self._aborted.clear()

    def _finish(self, entry: Entry, reason: FinishReason, events: list[Event]) -> None:
        if entry.row is None:
            self.waiting.remove(entry)
        else:
            self._withdraw(entry)
        self._end(entry, reason, events)

    def _withdraw(self, entry: Entry) -> None:
        """Takes the row out of the engine; its KV goes into the tree."""
        assert entry.row is not None
        entry.row.cut(len(entry.request.prompt) + entry.generated)  # a stop may have come before
        (self.prefilling if entry in self.prefilling else self.decoding).remove(entry)
        entry.tokens = entry.row.tokens
        self.engine.release(entry.row)
        entry.row = None
        entry.forgo()
        self.releases += 1
        self._blocked = False

    def _end(
        self, entry: Entry, reason: FinishReason, events: list[Event], message: str = UNFIT
    ) -> None:
        """The terminal event; ``message`` is for an error only."""
        del self._entries[entry.request.id]
        entry.account.replied(entry.generated)
        self.ledger.leave(entry.account)
        events.append(entry.end(reason, self.clock(), message))
