"""Agents of several tenants on the real scheduler, over an engine that only takes time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cache.loan import ANYBODY, Borrower
from cache.prefix_cache import NO_HIT, Hit
from engine.params import SamplingParams
from engine.variant import BASE, Variant
from scheduler.events import Event, Finished
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.stats import RequestStats, SchedulerStats
from scheduler.tenant import Tenant

from .fakes import FakeEngine, FakeRow

ROWS = 8


class Forgetful(FakeEngine):
    """An engine without a cache, so that ten thousand prompts cost the test little."""

    def lookup(
        self, tokens: Sequence[int], variant: Variant = BASE, borrower: Borrower = ANYBODY
    ) -> Hit:
        return NO_HIT

    def prefill(self, row: FakeRow, most: int) -> int:
        count = min(most, row.remaining)
        row.length += count
        self.now += count * self.prefill_cost
        return count

    def release(self, row: FakeRow) -> None:
        self.rows.remove(row)


class EngineTime(SchedulerStats):
    """Seconds of engine time by tenant, and the most that one request took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.most = 0.0

    def of(self, variant: Variant, tenant: str = "") -> RequestStats:
        return _Times(self, tenant)


class _Times(RequestStats):
    def __init__(self, of: EngineTime, tenant: str) -> None:
        self._of, self._tenant, self._mine = of, tenant, 0.0

    def engine_time(self, seconds: float) -> None:
        self._mine += seconds
        self._of.seconds[self._tenant] += seconds
        self._of.most = max(self._of.most, self._mine)


@dataclass
class Load:
    """What a tenant's agents send: how many at once, and how long prompts and replies are."""

    tenant: Tenant
    agents: int
    prompt: tuple[int, int]
    reply: tuple[int, int]
    pause: float = 0.0  # chance that an agent rests before its next request
    resting: int = 0
    sent: int = 0


@dataclass
class Simulation:
    """Closed loops of several tenants on one scheduler, with a clock of its own."""

    loads: Sequence[Load]
    rng: random.Random
    engine: Forgetful = field(default_factory=lambda: Forgetful(vocab_size=1 << 30))
    times: EngineTime = field(default_factory=EngineTime)

    def __post_init__(self) -> None:
        self.core = Scheduler(self.engine, max_rows=ROWS, stats=self.times, clock=self.engine.clock)
        self.load_of: dict[str, Load] = {}
        self.ended: dict[str, int] = defaultdict(int)
        for load in self.loads:
            for _ in range(load.agents):
                self.send(load)

    def send(self, load: Load) -> None:
        load.sent += 1
        name = f"{load.tenant.name}-{load.sent}"
        first = len(self.load_of) << 10  # nobody has a prefix of another's prompt
        prompt = tuple(range(first, first + self.rng.randint(*load.prompt)))
        reply = self.rng.randint(*load.reply)
        self.load_of[name] = load
        agent = f"agent{load.sent % load.agents}"
        self.core.add(
            Request(name, prompt, reply, SamplingParams(), tenant=load.tenant, agent=agent)
        )

    def step(self) -> list[Event]:
        events = self.core.step()
        for event in events:
            if isinstance(event, Finished):
                self.ended[event.request_id] += 1
                load = self.load_of[event.request_id]
                load.resting += 1
        for load in self.loads:
            while load.resting and self.rng.random() >= load.pause:
                load.resting -= 1
                self.send(load)
        return events

    def backlogged(self) -> set[str]:
        return {entry.account.name for entry in self.core.waiting}
