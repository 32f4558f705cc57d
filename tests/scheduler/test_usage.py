"""What is counted for tenants: by the scheduler itself, by the day, and as series."""

from __future__ import annotations

import random
import threading

import pytest
from prometheus_client import CollectorRegistry

from cache.loan import PUBLIC
from engine.variant import BASE
from scheduler.accounting import Accounting
from scheduler.events import Finished
from scheduler.metrics import Metrics
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.tenant import DEFAULT, Tenant
from scheduler.tenant_metrics import FAMILIES, TenantMetrics
from scheduler.tenants import Tenants
from scheduler.usage import DAY, Counts, Key, Usage

from .fakes import FakeEngine

A, B = Tenant("a"), Tenant("b")
LENT = "commons_prefix_cache_lent_tokens_total"


class Clock:
    def __init__(self) -> None:
        self.now = 20_000.5 * DAY

    def __call__(self) -> float:
        return self.now


def request(name: str, tenant: Tenant, length: int = 50, max_tokens: int = 4) -> Request:
    return Request(name, tuple(range(length)), max_tokens, model="m", tenant=tenant)


def add(usage: Usage, key: Key, change: Counts) -> None:
    with usage.lock:
        usage.counts(key).add(change)


def run(scheduler: Scheduler) -> dict[str, Finished]:
    ends = {}
    while scheduler.has_work:
        for event in scheduler.step():
            if isinstance(event, Finished):
                ends[event.request_id] = event
    return ends


def test_a_scheduler_counts_for_who_asked() -> None:
    registry, started = CollectorRegistry(), []
    usage, metrics = Usage(), Metrics(registry).model("m")
    engine = FakeEngine()
    stats = Accounting(metrics, "m", usage, started.append)
    scheduler = Scheduler(engine, stats=stats, clock=engine.clock)
    scheduler.add(request("a1", A))
    run(scheduler)
    scheduler.add(request("a2", A, max_tokens=7))
    scheduler.add(request("b1", B, length=30))
    ends = run(scheduler)
    assert sorted(started) == ["a1", "a2", "b1"]
    totals = usage.totals()
    assert (totals["a"].requests, totals["a"].prompt_tokens) == (2, 100)
    assert (totals["b"].requests, totals["b"].prompt_tokens) == (1, 30)
    assert (totals["a"].generated_tokens, totals["b"].generated_tokens) == (11, 4)
    cached = ends["a2"].cached_tokens
    assert totals["a"].cached_tokens == cached > 0
    value = registry.get_sample_value
    labels = {"model": "m", "adapter": "", "draft": ""}
    assert value("commons_generation_tokens_total", labels) == 15
    assert value("commons_prompt_tokens_total", labels) == 130


def test_a_request_that_is_put_back_starts_once() -> None:
    started: list[str] = []
    engine = FakeEngine(budget=130, now=1.0)
    stats = Accounting(Metrics(CollectorRegistry()).model("m"), "m", Usage(), started.append)
    scheduler = Scheduler(engine, stats=stats, clock=engine.clock)
    scheduler.add(request("a", A, 50, 40))
    scheduler.add(request("b", B, 50, 40))
    run(scheduler)
    assert scheduler.preemptions
    assert started == ["a", "b"]


def test_days_are_those_in_utc() -> None:
    clock = Clock()
    usage = Usage(clock)
    stats = usage.of("m", "a")
    stats.admitted(0.5, 10, 4)
    clock.now = 20_001 * DAY - 1e-3
    stats.first_token(1, 1)
    clock.now += 1e-3
    stats.next_token(1)
    stats.engine_time(0.25)
    stats.lent("b", 4)
    stats.lent("b", 3)
    stats.lent("a", 1)
    stats.finished("stop", 2.0)
    first, second = Key(20_000, "a", "m"), Key(20_001, "a", "m")
    expected = {
        first: Counts(0, 10, 4, 1, 0.0, 0.5),
        second: Counts(1, 0, 0, 1, 0.25, 0.0, {"b": 7, "a": 1}),
    }
    assert usage.peek() == expected == usage.take()
    assert usage.take() == {} == usage.peek()
    assert usage.totals() == {"a": Counts(1, 10, 4, 2, 0.25, 0.5, {"b": 7, "a": 1})}


def test_what_is_taken_is_not_taken_twice_while_others_count() -> None:
    usage, taken, rounds = Usage(), Counts(), 20_000
    stats = usage.of("m", "a")

    def count() -> None:
        for _ in range(rounds):
            stats.next_token(0.1)
            stats.lent("b", 2)

    writer = threading.Thread(target=count)
    writer.start()
    while writer.is_alive():
        for counts in usage.take().values():
            taken.add(counts)
    writer.join()
    for counts in usage.take().values():
        taken.add(counts)
    assert (taken.generated_tokens, taken.borrowed) == (rounds, {"b": 2 * rounds})
    assert usage.totals() == {"a": taken}


def test_series_of_configured_tenants_begin_at_0() -> None:
    registry, usage = CollectorRegistry(), Usage()
    series = TenantMetrics(usage, registry)
    value = registry.get_sample_value
    for name in FAMILIES:
        assert value(f"commons_tenant_{name}_total", {"tenant": DEFAULT.name}) == 0
    series.configure([A, B])
    for name in FAMILIES:
        for tenant in "ab":
            assert value(f"commons_tenant_{name}_total", {"tenant": tenant}) == 0
        assert value(f"commons_tenant_{name}_total", {"tenant": DEFAULT.name}) is None
    for lender in ("a", "b", PUBLIC):
        for borrower in "ab":
            assert value(LENT, {"lender": lender, "borrower": borrower}) == 0


def test_series_tell_the_totals_of_all_models_and_days() -> None:
    clock, registry = Clock(), CollectorRegistry()
    usage = Usage(clock)
    TenantMetrics(usage, registry).configure([A, B])
    value = registry.get_sample_value
    for model in ("m", "n"):
        stats = usage.of(model, "a")
        stats.admitted(0.5, 10, 4)
        stats.first_token(1, 1)
        stats.engine_time(0.25)
        stats.lent("b", 4)
        stats.lent("removed", 5)
        stats.lent(PUBLIC, 2)
        stats.finished("stop", 2.0)
        clock.now += DAY
        usage.take()
    usage.of("m", "stranger").finished("stop", 1.0)
    found = {n: value(f"commons_tenant_{n}_total", {"tenant": "a"}) for n in FAMILIES}
    assert found == {
        "prompt_tokens": 20,
        "cached_tokens": 8,
        "generation_tokens": 2,
        "requests": 2,
        "engine_seconds": 0.5,
        "queue_seconds": 1.0,
    }
    assert value(LENT, {"lender": "b", "borrower": "a"}) == 8
    lent = next(f for f in registry.collect() if f.name == LENT.removesuffix("_total"))
    assert {s.labels["lender"] for s in lent.samples} == {"a", "b", PUBLIC}
    assert value(LENT, {"lender": PUBLIC, "borrower": "a"}) == 4


def test_books_take_in_what_the_engine_started() -> None:
    books = Tenants([A], CollectorRegistry())
    books.reserve(A, 1, 5, rows=0).submit("r")
    stats = books.accounting("m", Metrics(CollectorRegistry()).model("m"))
    assert books.meters.held(A) == (1, 1)
    stats.started("r")
    stats.started("unknown")
    books.reserve(A, 1, 5, rows=0).close(refused=True)
    assert books.meters.held(A) == (1, 0)
    books.note(Finished("r", "stop", 5, 0, 1))
    assert books.meters.held(A) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_counts_do_not_depend_on_when_they_are_taken(seed: int) -> None:
    rng, clock = random.Random(seed), Clock()
    usage, whole, parts = Usage(clock), Counts(), Counts()
    for _ in range(500):
        change = Counts(*(rng.randrange(5) for _ in range(6)), {rng.choice("ab"): rng.randrange(9)})
        add(usage, Key(int(clock.now // DAY), "a", "m"), change)
        whole.add(change)
        clock.now += rng.randrange(DAY)
        if rng.random() < 0.1:
            for counts in usage.take().values():
                parts.add(counts)
    for counts in usage.peek().values():
        parts.add(counts)
    assert parts == whole == usage.totals()["a"]


def test_variants_of_a_model_are_one_tenants_use_of_it() -> None:
    usage = Usage()
    stats = Accounting(Metrics(CollectorRegistry()).model("m"), "m", usage, print)
    other = BASE._replace(adapter="x")
    assert stats.of(BASE, "a") is stats.of(BASE, "a")
    assert stats.of(BASE, "a") is not stats.of(other, "a")
    stats.of(BASE, "a").finished("stop", 1.0)
    stats.of(other, "a").finished("stop", 1.0)
    assert [c.requests for c in usage.take().values()] == [2]
