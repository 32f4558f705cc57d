"""Nothing that a domain is told or made to wait for depends on what another one has sent.

Exactly: of two worlds that differ only in what A asked, B sees the same in both, down to the work
done for it. And by measurement: the times that B's prompts take do not tell which world it is in.
"""

from __future__ import annotations

import math
import random
import time
from array import array
from collections.abc import Sequence

import pytest

from cache.keeping import Keeping
from cache.loan import Borrower
from engine.engine import Engine
from engine.params import SamplingParams
from engine.sampling import RowSampling
from scheduler.events import Finished
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.tenant import Tenant
from tests.models import loaded

GREEDY = SamplingParams(temperature=0.0)
TRIALS = 60
# Standard deviations of a rank sum. Beyond 5.5 on either side lies less than 4e-8 of a normal
# distribution, and less than 1e-6 of a rank sum of 30 and 30, whose tails are lighter.
ALARM = 5.5


def words(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, 500) for _ in range(count))


class World:
    """A scheduler and its engine, with a record of the forward passes."""

    def __init__(self, family: str, budget: int | None = None) -> None:
        attention = "copied" if family == "deepseek_v3" else "lent"
        self.engine = Engine(
            loaded(family), kv_memory=1 << 34, attention=attention, keeping=Keeping(most=64)
        )
        if budget is not None:
            self.engine.budget.limit = budget * self.engine.token_bytes
        self.passes: list[tuple[int, ...]] = []
        self.inputs = 0
        forward = self.engine.network.forward

        def counting(ids, *args):
            self.passes.append(tuple(ids.shape))
            return forward(ids, *args)

        self.engine.network.forward = counting
        # A clock that stands still: the length of chunks must not depend on the machine.
        self.scheduler = Scheduler(self.engine, max_rows=4, clock=lambda: 0.0)

    def add(self, name: str, prompt: Sequence[int], domain: str) -> None:
        tenant = Tenant(name.partition(" ")[0])
        self.scheduler.add(Request(name, tuple(prompt), 4, GREEDY, tenant=tenant, domain=domain))

    def run(self) -> list[object]:
        """Everything that is delivered, in order."""
        events: list[object] = []
        while self.scheduler.has_work:
            events += self.scheduler.step()
        return events

    def measured(self) -> tuple[int, list[tuple[int, ...]]]:
        """Tokens that have gone through the model since this was last asked, and the passes."""
        passes, self.passes = self.passes, []
        inputs, self.inputs = self.engine.input_tokens - self.inputs, self.engine.input_tokens
        return inputs, passes


def both(family: str, budget: int | None = None) -> tuple[World, World]:
    return World(family, budget), World(family, budget)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_next", "deepseek_v3"])
@pytest.mark.parametrize("budget", [None, 2500])
def test_what_another_domain_has_cached_changes_nothing(family, budget):
    rng = random.Random(3)
    same, other = both(family, budget)
    hits = 0
    for trial in range(TRIALS // 2 if family == "qwen3" else 8):
        length = rng.randint(80, 400)
        secret, decoy, more = words(rng, length), words(rng, length), words(rng, 30)
        for world, asked in ((same, secret), (other, decoy)):
            world.add(f"eve {trial}", asked, "theirs")
            world.run()
            world.measured()
        seen = []
        for world in (same, other):
            world.add(f"ann {trial}", secret, "ours")
            events = world.run()
            # Again, and continued: what is cached now is its own.
            world.add(f"ann {trial}+", [*secret, *more], "ours")
            events += world.run()
            seen.append((events, world.measured()))
        assert seen[0] == seen[1]
        first, second = (e for e in seen[0][0] if isinstance(e, Finished))
        assert first.cached_tokens < 10, "but for words that some prompts begin with by chance"
        hits += second.cached_tokens > 0
    assert hits, "in its own domain everything is as always"


@pytest.mark.parametrize("family", ["qwen3", "qwen3_next"])
def test_nobody_waits_for_a_prompt_that_another_domain_computes(family):
    rng = random.Random(4)
    for trial in range(12):
        same, other = both(family)
        length = rng.randint(200, 400)
        secret, decoy = words(rng, length), words(rng, length)
        own = words(rng, 150)
        seen = []
        for world, asked in ((same, secret), (other, decoy)):
            world.add("eve 1", asked, "theirs")
            world.add("eve 2", asked, "theirs")
            world.add("ann 1", secret, "ours")
            world.add("ann 2", own, "ours")
            events = world.run()
            told = [e for e in events if e.request_id.startswith("ann") or isinstance(e, Finished)]
            ends = [
                e._replace(cached_tokens=0) if e.request_id.startswith("eve") else e for e in told
            ]
            order = [e.request_id for e in events]
            seen.append((ends, order, world.measured()))
        assert seen[0] == seen[1], trial


def test_in_one_domain_all_of_this_would_show():
    """The control: these tests can fail."""
    rng = random.Random(5)
    same, other = both("qwen3")
    secret, decoy = words(rng, 300), words(rng, 300)
    seen = []
    for world, asked in ((same, secret), (other, decoy)):
        world.add("eve 1", asked, "ours")
        world.run()
        world.measured()
        world.add("ann 1", secret, "ours")
        events = world.run()
        seen.append((events, world.measured()))
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]
    for name in ("eve 2", "ann 2"):  # the second waits for what the first one computes
        same.add(name, decoy, "ours")
    cached = [e.cached_tokens for e in same.run() if isinstance(e, Finished)]
    assert min(cached) == 0 < 200 < max(cached)


def rank_sum(group: list[float], others: list[float]) -> float:
    """The Mann-Whitney statistic in standard deviations: how far ``group`` lies above."""
    ranked = sorted(group + others)
    above = sum(ranked.index(x) + (ranked.count(x) - 1) / 2 for x in group)
    n, m = len(group), len(others)
    u = above - n * (n - 1) / 2
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def prefill_seconds(engine: Engine, prompt: Sequence[int], borrower: Borrower) -> float:
    tokens = array("i", prompt)
    sampling = RowSampling(GREEDY, tokens, engine.vocab_size)
    # Of all threads, but of this process alone: what else the machine does would only hide what
    # is looked for.
    began = time.process_time()
    row = engine.admit("row", tokens, sampling, (), borrower=borrower)
    assert row is not None
    while row.remaining:
        engine.prefill(row, 128)
    seconds = time.process_time() - began
    engine.release(row)
    return seconds


def distinguished(engine: Engine, domain: str) -> float:
    """How well times tell, in ``domain``, whether eve has asked the same prompt before.

    A coin decides for each trial, so that under no difference all orders of the times are equally
    likely, whatever the machine does meanwhile.
    """
    rng = random.Random(6)
    coins = [i < TRIALS // 2 for i in range(TRIALS)]
    rng.shuffle(coins)
    times: dict[bool, list[float]] = {True: [], False: []}
    for coin in coins:
        secret, decoy = words(rng, 350), words(rng, 350)
        prefill_seconds(engine, secret if coin else decoy, Borrower("eve", "theirs"))
        times[coin].append(prefill_seconds(engine, secret, Borrower("ann", domain)))
    return rank_sum(times[False], times[True])


def test_times_do_not_tell_what_another_domain_has_sent():
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34)
    prefill_seconds(engine, words(random.Random(1), 350), Borrower())
    assert abs(distinguished(engine, "ours")) < ALARM
    assert distinguished(engine, "theirs") > ALARM, "in one domain it is plain"
