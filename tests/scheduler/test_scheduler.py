"""Policy of the step loop, on an engine without a model and a clock that only work moves."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from cache.loan import NOBODY
from engine.params import SamplingParams
from engine.variant import Variant
from scheduler.events import Finished, Token
from scheduler.order import MOST_PASSED_OVER
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.stats import RequestStats, SchedulerStats

from .fakes import FakeEngine

GREEDY = SamplingParams(temperature=0.0)


def scheduler(engine: FakeEngine, **options) -> Scheduler:
    return Scheduler(engine, clock=engine.clock, **options)


def request(name: str, prompt, max_tokens: int = 4, stop=()) -> Request:
    return Request(name, tuple(prompt), max_tokens, GREEDY, frozenset(stop))


def drain(core: Scheduler):
    events = []
    for _ in range(100_000):
        if not core.has_work:
            return events
        events += core.step()
    raise AssertionError("work is left")


def test_a_reply_counts_up_to_its_limit():
    core = scheduler(FakeEngine())
    core.add(request("a", [1, 2, 3], max_tokens=3))
    assert drain(core) == [
        Token("a", 4),
        Token("a", 5),
        Token("a", 6),
        Finished("a", "length", 3, 0, 3),
    ]


def test_a_stop_token_ends_the_reply_and_is_not_delivered():
    core = scheduler(FakeEngine())
    core.add(request("a", [1, 2, 3], max_tokens=9, stop=[5]))
    assert drain(core) == [Token("a", 4), Finished("a", "stop", 3, 0, 2)]


@pytest.mark.parametrize(
    ("stop", "reason", "told", "generated"),
    [([6], "stop", [4, 5], 3), ([7], "stop", [4, 5, 6], 4), ([], "length", [4, 5, 6, 7, 8], 5)],
)
def test_a_reply_ends_within_a_step_of_several_tokens(stop, reason, told, generated):
    engine = FakeEngine(accepted=2)
    core = scheduler(engine)
    core.add(request("a", [1, 2, 3], max_tokens=5, stop=stop))
    tokens = [Token("a", t) for t in told]
    assert drain(core) == [*tokens, Finished("a", reason, 3, 0, generated)]
    (kept,) = {p for _, p in engine.cached if len(p) > 2}
    assert kept == (1, 2, 3, *told)[: 3 + generated - 1], "what came after the end is not kept"


def test_drafts_are_counted_for_their_variant():
    class Counting(SchedulerStats):
        def __init__(self):
            self.counts = defaultdict(list)

        def of(self, variant, tenant=NOBODY):
            counts = self.counts[variant.draft]

            class Series(RequestStats):
                def drafted(self, proposed, accepted):
                    counts.append((proposed, accepted))

            return Series()

    stats = Counting()
    core = scheduler(FakeEngine(accepted=2), stats=stats)
    core.add(replace(request("a", [1, 2], max_tokens=6), variant=Variant(draft="small")))
    drain(core)
    assert stats.counts == {"small": [(3, 2), (3, 2)]}


def test_the_next_step_is_submitted_before_tokens_are_delivered():
    engine = FakeEngine()
    core = scheduler(engine)
    core.add(request("a", [1, 2], max_tokens=3))
    while not (events := core.step()):
        pass
    assert events == [Token("a", 3)]
    assert engine.busy


def test_a_request_that_waits_for_anothers_prefix_says_so():
    core = scheduler(FakeEngine())
    for name in "ab":
        core.add(request(name, range(1000, 9000)))
    core.step()
    (waiting,) = core.waiting
    assert waiting.following
    drain(core)
    assert not waiting.following


def test_requests_with_a_common_prefix_prefill_it_once():
    engine = FakeEngine()
    core = scheduler(engine)
    shared = range(1000, 3000)
    for i in range(10):
        core.add(request(f"r{i}", [*shared, i, i + 1, i + 2]))
    ends = [e for e in drain(core) if isinstance(e, Finished)]
    assert sum(count for _, count in engine.prefilled) == len(shared) + 10 * 2
    assert sorted(e.cached_tokens for e in ends) == [0] + [len(shared)] * 9


def test_the_same_words_under_another_adapter_are_neither_reused_nor_waited_for():
    engine = FakeEngine()
    core = scheduler(engine)
    for name, adapter in (("a", None), ("b", "x"), ("c", "y"), ("d", "x")):
        core.add(replace(request(name, range(1000, 3000)), variant=Variant(adapter)))
    core.step()
    assert core.running == 3, "only the second one under x has somebody to wait for"
    ends = {e.request_id: e.cached_tokens for e in drain(core) if isinstance(e, Finished)}
    assert ends == {"a": 0, "b": 0, "c": 0, "d": 1999}


def test_a_prompt_with_nothing_in_common_does_not_wait_for_a_leader():
    engine = FakeEngine()
    core = scheduler(engine)
    core.add(request("leader", range(1000, 9000)))
    core.step()
    core.add(request("other", range(50)))
    core.step()
    assert core.running == 2


@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
def test_abort_ends_a_request_within_a_step_of_its_phase(phase):
    engine = FakeEngine()
    core = scheduler(engine, max_rows=1)
    if phase == "queue":
        core.add(request("first", range(5000), max_tokens=50))
        core.step()
    core.add(request("a", range(10, 5000), max_tokens=50))
    while phase == "prefill" and not core.prefilling:
        core.step()
    while phase == "decode" and not core.decoding:
        core.step()
    core.abort("a")
    busy = engine.busy
    ends = [e for e in core.step() if isinstance(e, Finished) and e.request_id == "a"]
    assert [e.reason for e in ends] == ["abort"], busy
    assert all(r.id != "a" for r in engine.rows)
    core.abort("a")
    drain(core)


def test_an_aborted_prompt_leaves_what_it_had_prefilled():
    engine = FakeEngine()
    core = scheduler(engine)
    core.add(request("a", range(8000)))
    while not engine.prefilled:
        core.step()
    core.abort("a")
    core.step()
    done = sum(count for _, count in engine.prefilled)
    core.add(request("b", range(8000), max_tokens=1))
    (end,) = [e for e in drain(core) if isinstance(e, Finished)]
    assert end.cached_tokens == done > 0


def test_a_chunk_next_to_decodes_keeps_the_stall_target():
    engine = FakeEngine(prefill_cost=1e-3, decode_cost=2e-2)
    core = scheduler(engine, stall_target=0.1)
    for i in range(4):
        core.add(request(f"d{i}", [i, i], max_tokens=400))
    while len(core.decoding) < 4:
        core.step()
    # The pace is learned on another prompt first.
    core.add(request("warm", range(5000), max_tokens=1))
    gaps = []
    last = {}
    added = False
    while core.has_work:
        for event in core.step():
            if isinstance(event, Token) and event.request_id.startswith("d"):
                if event.request_id in last:
                    gaps.append(engine.now - last[event.request_id])
                last[event.request_id] = engine.now
            elif isinstance(event, Finished) and event.request_id == "warm" and not added:
                added = True
                core.add(request("long", range(20_000, 40_000), max_tokens=1))
    assert max(gaps) <= 0.1 + 0.04


def test_rows_are_bounded():
    engine = FakeEngine()
    core = scheduler(engine, max_rows=3)
    for i in range(20):
        core.add(request(f"r{i}", [i, i, i]))
    drain(core)
    assert engine.most_rows == 3


def test_memory_is_waited_for_and_the_youngest_gives_way():
    engine = FakeEngine(budget=60)
    core = scheduler(engine)
    for i in range(4):
        core.add(request(f"r{i}", range(100 * i, 100 * i + 14), max_tokens=30))
    ends = {e.request_id: e for e in drain(core) if isinstance(e, Finished)}
    assert {e.reason for e in ends.values()} == {"length"}
    assert {e.completion_tokens for e in ends.values()} == {30}
    assert core.preemptions > 0


def test_a_preempted_reply_is_the_same_as_an_undisturbed_one():
    def replies(budget):
        core = scheduler(FakeEngine(budget=budget))
        for i in range(4):
            core.add(request(f"r{i}", range(100 * i, 100 * i + 14), max_tokens=30))
        tokens = defaultdict(list)
        for event in drain(core):
            if isinstance(event, Token):
                tokens[event.request_id].append(event.token)
        return tokens

    assert replies(60) == replies(10_000)


def test_the_last_row_left_ends_with_length_when_memory_is_full():
    core = scheduler(FakeEngine(budget=20))
    core.add(request("a", range(14), max_tokens=50))
    (end,) = [e for e in drain(core) if isinstance(e, Finished)]
    assert end.reason == "length"
    assert 0 < end.completion_tokens < 50


def test_a_long_prompt_is_not_passed_over_for_ever():
    engine = FakeEngine()
    core = scheduler(engine, max_rows=4, stall_target=0.05)
    core.add(request("long", range(10_000, 12_000), max_tokens=1))
    short = 0
    finished = False
    while not finished:
        while len(core.waiting) < 4:
            short += 1
            core.add(request(f"s{short}", [short * 7, short * 7 + 3, short], max_tokens=1))
        finished = any(isinstance(e, Finished) and e.request_id == "long" for e in core.step())
        assert short < 200 * MOST_PASSED_OVER


@pytest.mark.parametrize("seed", range(20))
def test_every_request_ends_in_exactly_one_terminal_event(seed):
    rng = random.Random(seed)
    engine = FakeEngine(budget=rng.choice([200, 500, 5000]))
    core = scheduler(engine, max_rows=rng.randint(1, 8), stall_target=0.01)
    alive, ends, tokens = [], Counter(), Counter()
    for step in range(400):
        if rng.random() < 0.3:
            base = rng.choice([0, 1000, 2000])
            prompt = [*range(base, base + rng.randint(1, 90)), rng.randrange(5000)]
            core.add(request(str(step), prompt, rng.randint(1, 30), stop=[rng.randrange(3000)]))
            alive.append(str(step))
        if alive and rng.random() < 0.1:
            core.abort(rng.choice(alive))
        if core.has_work:
            for event in core.step():
                assert not ends[event.request_id]
                if isinstance(event, Finished):
                    ends[event.request_id] += 1
                    delivered = tokens[event.request_id]
                    assert event.completion_tokens - delivered in (0, 1)
                else:
                    tokens[event.request_id] += 1
    for event in drain(core):
        ends[event.request_id] += isinstance(event, Finished)
    assert set(ends) == set(alive)
    assert set(ends.values()) <= {1}
    assert not engine.rows


def test_one_that_can_never_fit_does_not_hold_up_the_others():
    core = scheduler(FakeEngine(budget=20))
    core.add(request("big", range(100, 140)))
    core.add(request("small", range(5)))
    ends = {e.request_id: e.reason for e in drain(core) if isinstance(e, Finished)}
    assert ends == {"big": "error", "small": "length"}


def test_a_lone_row_that_cannot_grow_starts_anew_and_keeps_its_reply():
    class Doubling(FakeEngine):
        """Where a row holds its KV twice to grow past a multiple of 8 tokens."""

        def make_room(self, row):
            if len(row.tokens) % 8 == 0 and row not in self.fresh:
                return False
            self.fresh.discard(row)
            return True

        def admit(self, *arguments):
            row = super().admit(*arguments)
            self.fresh = {row}
            return row

    core = scheduler(Doubling(budget=100))
    core.add(request("a", range(14), max_tokens=30))
    events = drain(core)
    assert [e.token for e in events if isinstance(e, Token)] == [*range(14, 44)]
    assert events[-1] == Finished("a", "length", 14, 0, 30)
    assert core.preemptions >= 3
