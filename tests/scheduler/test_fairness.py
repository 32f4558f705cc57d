"""Tenants share the engine by weight: the real scheduler in a simulation, and rule by rule."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

import pytest

from cache.loan import PUBLIC, Loan, Share
from engine.params import SamplingParams
from engine.variant import Variant
from scheduler.events import Event, Finished, Token
from scheduler.ledger import Account, Ledger
from scheduler.order import MOST_OUTRANKED, MOST_PASSED_OVER
from scheduler.queue import MOST_AGENTS
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.stats import RequestStats, SchedulerStats
from scheduler.tenant import Tenant

from .fakes import FakeEngine
from .simulation import ROWS, Forgetful, Load, Simulation

REQUESTS = 10_000

LOADS = (
    Load(Tenant("light"), 3, (20, 200), (2, 10), pause=0.5),
    Load(Tenant("heavy", weight=3.0), 24, (100, 900), (3, 20)),
    Load(Tenant("flood"), 40, (10, 400), (1, 30)),
    Load(Tenant("bursts", weight=0.5), 30, (50, 300), (2, 8), pause=0.9),
)


def test_service_of_backlogged_tenants_differs_by_no_more_than_the_bound_over_10000_requests():
    """The bound of ARCHITECTURE.md, for every pair and every time since both were backlogged."""
    loads = [Load(m.tenant, m.agents, m.prompt, m.reply, m.pause) for m in LOADS]
    world = Simulation(loads, random.Random(4))
    weights = {load.tenant.name: load.tenant.weight for load in loads}
    since: dict[tuple[str, str], float] = {}
    widest: dict[tuple[str, str], float] = defaultdict(float)
    while len(world.ended) < REQUESTS:
        world.step()
        names = sorted(world.backlogged())
        pairs = {(a, b) for a in names for b in names if a < b}
        for pair in list(since):
            if pair not in pairs:
                del since[pair]
        for pair in pairs:
            a, b = (world.times.seconds[name] / weights[name] for name in pair)
            start = since.setdefault(pair, a - b)
            widest[pair] = max(widest[pair], abs(a - b - start))
    assert set(world.ended.values()) == {1}, "every request ends once"
    assert len(widest) == 6, "every pair was backlogged at some time"
    for pair, difference in widest.items():
        least = min(weights[name] for name in pair)
        assert difference <= 2 * ROWS * world.times.most / least, pair


def test_two_backlogged_tenants_are_served_by_their_weights():
    one, three = (Load(Tenant(f"w{w}", weight=w), 15, (50, 150), (20, 40)) for w in (1.0, 3.0))
    world = Simulation([one, three], random.Random(5))
    while len(world.ended) < 2000:
        world.step()
    seconds = world.times.seconds
    assert seconds["w3.0"] / seconds["w1.0"] == pytest.approx(3.0, rel=0.1)


def request(name: str, tenant: Tenant, prompt: Iterable[int], reply: int = 4, **more) -> Request:
    return Request(name, tuple(prompt), reply, SamplingParams(), tenant=tenant, **more)


def scheduler(engine: FakeEngine, **options) -> Scheduler:
    return Scheduler(engine, clock=engine.clock, **options)


def firsts(core: Scheduler, most: int = 100_000) -> list[str]:
    """The requests in the order of their first tokens."""
    seen: dict[str, None] = {}
    while core.has_work and most:
        most -= 1
        for event in core.step():
            if isinstance(event, Token):
                seen.setdefault(event.request_id)
    assert not core.has_work
    return list(seen)


CROWD, LONE = Tenant("crowd"), Tenant("lone")


def test_a_lone_request_gets_a_row_of_a_tenant_that_has_all():
    engine = Forgetful()
    core = scheduler(engine, max_rows=4)
    for i in range(30):
        core.add(request(f"crowd{i}", CROWD, range(50), reply=200))
    replies: dict[str, int] = defaultdict(int)
    while core.has_work:
        if len(core.decoding) == 4 and "lone" not in replies:
            replies["lone"] = 0
            core.add(request("lone", LONE, range(50)))
        for event in core.step():
            if isinstance(event, Token):
                replies[event.request_id] += 1
            if isinstance(event, Finished) and event.request_id == "lone":
                assert max(n for name, n in replies.items() if name != "lone") < 200
    assert core.preemptions == 1
    assert replies == {f"crowd{i}": 200 for i in range(30)} | {"lone": 4}, "nothing is lost"


def test_a_tenant_with_its_part_of_the_rows_takes_no_more_from_others():
    engine = Forgetful()
    core = scheduler(engine, max_rows=4)
    for tenant in (CROWD, LONE):
        for i in range(20):
            core.add(request(f"{tenant.name}{i}", tenant, range(50), reply=100))
    while core.has_work:
        core.step()
    assert core.preemptions <= 2


def test_a_prompt_of_a_tenant_that_has_had_less_is_computed_first():
    engine = Forgetful()
    core = scheduler(engine)
    for i in range(10):
        core.add(request(f"crowd{i}", CROWD, range(9000 * i, 9000 * i + 500)))
    core.step()
    core.add(request("lone", LONE, range(4000)))
    assert firsts(core).index("lone") <= 2


def test_agents_of_a_tenant_take_turns():
    engine = Forgetful()
    core = scheduler(engine, max_rows=1)
    for i in range(5):
        core.add(request(f"a{i}", CROWD, range(50), agent="a"))
    for i in range(2):
        core.add(request(f"b{i}", CROWD, range(50), agent="b"))
        core.add(request(f"c{i}", CROWD, range(50), agent="c"))
    assert firsts(core) == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "a3", "a4"]


def test_of_ever_new_agents_only_so_many_are_remembered():
    core = scheduler(Forgetful(), max_rows=1)
    for i in range(MOST_AGENTS + 10):
        core.add(request(f"r{i}", CROWD, range(3), agent=f"agent {i}"))
    most, ended = 0, 0
    while ended < MOST_AGENTS + 10:
        ended += sum(isinstance(event, Finished) for event in core.step())
        most = max(most, len(core.waiting.turns))
    assert most == MOST_AGENTS
    assert not len(core.waiting.turns)  # nobody waits: nobody need be remembered


def test_of_agents_whose_turn_it_is_the_one_with_the_longest_prefix_goes_first():
    engine = FakeEngine()
    core = scheduler(engine, max_rows=1)
    core.add(request("before", CROWD, range(1000, 1200)))
    firsts(core)
    core.add(request("new", CROWD, range(5000, 5200), agent="a"))
    core.add(request("known", CROWD, range(1000, 1201), agent="b"))
    assert firsts(core) == ["known", "new"]


def test_nothing_is_passed_over_for_ever_within_a_tenant():
    engine = FakeEngine()
    core = scheduler(engine, max_rows=1)
    core.add(request("before", CROWD, range(1000, 1200)))
    firsts(core)
    core.add(request("new", CROWD, range(5000, 5200)))
    order: list[str] = []
    for i in range(40):
        engine.now += 1.0
        core.add(request(f"known{i}", CROWD, range(1000, 1201)))
    order = firsts(core)
    assert order.index("new") == MOST_PASSED_OVER


def test_batch_fills_the_gaps():
    engine = Forgetful()
    core = scheduler(engine, max_rows=2)
    for i in range(4):
        core.add(request(f"batch{i}", CROWD, range(50), priority="batch"))
    for i in range(6):
        core.add(request(f"now{i}", LONE, range(50)))
    order = firsts(core)
    assert sorted(order[:6]) == [f"now{i}" for i in range(6)]
    assert len(order) == 10


def test_batch_makes_way_and_still_finishes():
    engine = Forgetful()
    core = scheduler(engine, max_rows=2)
    for name in ("batch0", "batch1"):
        core.add(request(name, CROWD, range(50), reply=400, priority="batch"))
    while len(core.decoding) < 2:
        core.step()
    core.add(request("now", CROWD, range(50), reply=3))
    ends = [e for e in _events(core) if isinstance(e, Finished)]
    assert core.preemptions == 1
    assert [(e.request_id, e.completion_tokens) for e in ends] == [
        ("now", 3),
        *((e.request_id, 400) for e in ends[1:]),
    ]
    assert len(ends) == 3


def test_batch_finishes_although_interactive_requests_never_end():
    engine = Forgetful()
    core = scheduler(engine, max_rows=1)
    core.add(request("batch", CROWD, range(50), priority="batch"))
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        core.add(request(f"now{sent}", LONE, range(50)))

    send()
    send()
    while True:
        events = core.step()
        if any(isinstance(e, Finished) and e.request_id == "batch" for e in events):
            break
        for event in events:
            if isinstance(event, Finished):
                send()
        assert sent < 3 * MOST_OUTRANKED
    assert sent >= MOST_OUTRANKED


def test_where_memory_is_short_a_tenant_with_more_than_its_part_makes_way():
    engine = Forgetful(budget=1000)
    core = scheduler(engine)
    for i in range(20):
        core.add(request(f"crowd{i}", CROWD, range(150), reply=100))
    while len(core.decoding) < 3:
        core.step()
    core.add(request("lone", LONE, range(150), reply=5))
    ends = [e for e in _events(core) if isinstance(e, Finished)]
    assert ends[0].request_id == "lone"
    assert {e.reason for e in ends} == {"length"}
    assert len(ends) == 21


@pytest.mark.parametrize("users", [2, 3, 7])
def test_the_cost_of_a_shared_prefix_is_spread_over_all_that_use_it(users):
    ledger = Ledger()
    accounts = [ledger.join(Tenant(f"t{i}")) for i in range(users)]
    accounts[0].charge(100 * 0.5)
    for i, account in enumerate(accounts[1:], 1):
        payers = tuple(a.name for a in accounts[:i])
        ledger.spread(Share(100, payers), account, 0.5)
    assert [a.service for a in accounts] == pytest.approx([50.0 / users] * users)


def test_a_public_prefix_costs_nobody():
    ledger = Ledger()
    account = ledger.join(Tenant("t"))
    ledger.spread(Share(100, (PUBLIC,)), account, 0.5)
    assert account.service == 0.0


def test_what_is_found_in_the_cache_is_counted_for_its_lender_once():
    lent: list[tuple[str, int]] = []

    class Counting(SchedulerStats, RequestStats):
        def of(self, variant: Variant, tenant: str = "") -> RequestStats:
            return self

        def lent(self, lender: str, tokens: int) -> None:
            lent.append((lender, tokens))

    class Lending(FakeEngine):
        def admit(self, *args, **more):
            row = super().admit(*args, **more)
            if row is not None and row.length:
                row.loan = Loan({"first": row.length}, (Share(row.length, ("first",)),))
            return row

    engine = Lending()
    core = scheduler(engine, stats=Counting())
    core.add(request("a", Tenant("first"), range(1000, 1300)))
    list(_events(core))
    first, second = _accounts(core, "first", "second")
    before = first.service
    core.add(request("b", Tenant("second"), range(1000, 1301)))
    list(_events(core))
    assert lent == [("first", 300)]
    saved = 300 * engine.prefill_cost / 2
    assert first.service == pytest.approx(before - saved)
    assert second.service > saved


def test_idle_time_is_not_saved_up():
    engine = Forgetful()
    core = scheduler(engine, max_rows=2)
    for i in range(100):
        core.add(request(f"crowd{i}", CROWD, range(50), reply=20))
    while len(core.waiting) > 50:
        core.step()
    for i in range(50):
        core.add(request(f"lone{i}", LONE, range(50), reply=20))
    order = firsts(core)
    late = [name.startswith("lone") for name in order[-100:]]
    for begin in range(0, 80, 20):
        assert 5 <= sum(late[begin : begin + 20]) <= 15


def _events(core: Scheduler) -> Iterable[Event]:
    while core.has_work:
        yield from core.step()


def _accounts(core: Scheduler, *names: str) -> list[Account]:
    accounts = []
    for name in names:
        account = core.ledger.join(Tenant(name))
        core.ledger.leave(account)
        accounts.append(account)
    return accounts
