"""Tenants' meters on a clock of the test's own: what they let through, and what they give back."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.bucket import Bucket
from scheduler.limits import MOST_WAIT, Admission, Meters, OverLimit
from scheduler.tenant import DEFAULT, Limits, Tenant


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tenant(name: str = "a", **limits: int) -> Tenant:
    return Tenant(name, limits=Limits(**limits))


def meters(*tenants: Tenant) -> tuple[Meters, Clock]:
    clock = Clock()
    return Meters(tenants, clock), clock


def refused(meters: Meters, who: Tenant, *args: int, **more: int) -> OverLimit:
    with pytest.raises(OverLimit) as caught:
        meters.reserve(who, *args, **more)
    return caught.value


def remaining(meters: Meters, who: Tenant) -> tuple[int | None, int | None]:
    requests, tokens = meters.standing(who)
    return requests and requests.remaining, tokens and tokens.remaining


def test_who_has_no_limits_is_never_refused() -> None:
    some, _ = meters()
    for i in range(1000):
        some.reserve(DEFAULT, 1, 10**6).submit(str(i))
    assert some.standing(DEFAULT) == (None, None)
    assert some.held(DEFAULT) == (1000, 1000)


def test_requests_are_refilled_continuously_and_the_wait_is_exact() -> None:
    who = tenant(requests_per_minute=6)
    some, clock = meters(who)
    for _ in range(6):
        some.reserve(who)
    error = refused(some, who)
    assert (error.limit, error.retry_after) == ("requests", pytest.approx(10))
    assert "6 requests a minute" in str(error) and "'a'" in str(error)
    clock.now += 9.99
    assert refused(some, who).retry_after == pytest.approx(0.01)
    clock.now += 0.01
    some.reserve(who)
    assert refused(some, who, 2).retry_after == pytest.approx(20)
    clock.now += 3600
    standing = some.standing(who).requests
    assert standing is not None and (standing.limit, standing.remaining, standing.reset) == (
        6,
        6,
        0,
    )


def test_tokens_are_estimated_and_then_settled_with_the_true_number() -> None:
    who = tenant(tokens_per_minute=600)
    some, _ = meters(who)
    admission = some.reserve(who, 1, 100)
    assert remaining(some, who) == (None, 500)
    admission.submit("r")
    admission.close(refused=False)
    some.started("r")
    for _ in range(20):
        some.generated("r")
    assert remaining(some, who) == (None, 480)
    some.settle("r", 150, 22, failed=False)
    assert remaining(some, who) == (None, 600 - 150 - 22)
    some.settle("r", 150, 22, failed=False)
    some.generated("r")
    assert remaining(some, who) == (None, 600 - 150 - 22)


def test_what_was_larger_than_estimated_is_made_up_for() -> None:
    who = tenant(tokens_per_minute=600)
    some, clock = meters(who)
    some.reserve(who, 1, 1).submit("r")
    some.settle("r", 600, 300, failed=False)
    assert remaining(some, who) == (None, 0)
    error = refused(some, who, 1, 60)
    assert (error.limit, error.retry_after) == ("tokens", pytest.approx((300 + 60) / 10))
    clock.now += 36
    some.reserve(who, 1, 60)


def test_a_prompt_larger_than_the_bucket_goes_when_that_is_full() -> None:
    who = tenant(tokens_per_minute=600)
    some, clock = meters(who)
    some.reserve(who, 1, 60)
    assert refused(some, who, 1, 6000).retry_after == pytest.approx(6)
    clock.now += 6
    some.reserve(who, 1, 6000)
    assert refused(some, who, 1, 1).retry_after == pytest.approx((5400 + 1) / 10)


def test_a_limit_of_none_at_all_says_never() -> None:
    who = tenant(requests_per_minute=0)
    assert refused(meters(who)[0], who).retry_after is None


def test_concurrent_places_are_free_again_at_the_end() -> None:
    who = tenant(concurrent=2)
    some, clock = meters(who)
    some.reserve(who).submit("r")
    open_admission = some.reserve(who)
    error = refused(some, who)
    assert error.limit == "concurrent" and error.retry_after is not None
    clock.now += 5
    some.settle("r", 1, 1, failed=False)
    some.reserve(who).submit("s")
    assert 1 <= (refused(some, who).retry_after or 0) <= MOST_WAIT
    open_admission.close(refused=True)
    some.reserve(who)
    assert refused(some, who, 3).retry_after is None
    assert "3 places" in str(refused(some, who, 3))


def test_queued_are_those_without_a_row() -> None:
    who = tenant(queued=1)
    some, _ = meters(who)
    some.reserve(who, rows=2).submit("r")
    some.reserve(who, rows=1).submit("s")
    assert some.held(who) == (2, 0)
    some.reserve(who).submit("t")
    assert refused(some, who).limit == "queued"
    assert refused(some, who, 3, rows=1).limit == "queued"
    some.started("r")  # it did not count as queued, so nothing changes
    assert refused(some, who).limit == "queued"
    some.started("t")
    some.started("t")
    assert some.held(who) == (3, 0)
    some.reserve(who).submit("u")
    some.settle("u", 5, 0, failed=False)
    assert some.held(who) == (3, 0)
    some.reserve(who, 2, rows=1)


def test_who_is_refused_for_one_limit_takes_nothing_of_the_others() -> None:
    who = tenant(requests_per_minute=10, tokens_per_minute=100, concurrent=1)
    some, _ = meters(who)
    some.reserve(who, 1, 10)
    for _ in range(5):
        assert refused(some, who, 1, 10).limit == "concurrent"
    assert remaining(some, who) == (9, 90)


def test_the_longest_wait_is_told() -> None:
    who = tenant(requests_per_minute=60, tokens_per_minute=60)
    some, _ = meters(who)
    some.reserve(who, 60, 60)
    error = refused(some, who, 1, 30)
    assert (error.limit, error.retry_after) == ("tokens", pytest.approx(30))


def test_places_that_were_not_used_are_given_back_in_full() -> None:
    who = tenant(requests_per_minute=10, tokens_per_minute=100)
    some, _ = meters(who)
    admission = some.reserve(who, 4, 40)
    admission.submit("r")
    admission.submit("s")
    admission.withdraw("s")
    assert remaining(some, who) == (6, 60)
    admission.close(refused=False)
    admission.close(refused=False)
    assert remaining(some, who) == (9, 90)
    assert some.held(who) == (1, 1)


def test_a_refused_response_costs_nothing_even_where_a_part_of_it_ran() -> None:
    who = tenant(requests_per_minute=10, tokens_per_minute=100)
    some, _ = meters(who)
    admission = some.reserve(who, 2, 40)
    admission.submit("r")
    admission.close(refused=True)
    some.started("r")
    some.generated("r")
    some.settle("r", 50, 1, failed=False)
    assert remaining(some, who) == (10, 100)
    assert some.held(who) == (0, 0)


def test_what_failed_is_free_and_what_never_ran_costs_no_tokens() -> None:
    who = tenant(requests_per_minute=10, tokens_per_minute=100)
    some, _ = meters(who)
    some.reserve(who, 1, 40).submit("r")
    some.settle("r", 50, 3, failed=True)
    assert remaining(some, who) == (10, 100)
    some.reserve(who, 1, 40).submit("s")
    some.settle("s", 50, 0, failed=False)
    assert remaining(some, who) == (9, 100)


def test_tenants_do_not_share_their_limits() -> None:
    a, b = tenant("a", requests_per_minute=1), tenant("b", requests_per_minute=1)
    some, _ = meters(a, b)
    some.reserve(a)
    some.reserve(b)
    assert refused(some, a).limit == refused(some, b).limit == "requests"


def test_new_limits_leave_what_was_used() -> None:
    some, clock = meters(tenant(requests_per_minute=10, tokens_per_minute=100))
    who = tenant()
    some.reserve(who, 4, 40).submit("r")
    some.configure([tenant(requests_per_minute=100, concurrent=4)])
    assert remaining(some, who) == (96, None)
    assert refused(some, who).limit == "concurrent"
    some.configure([tenant(requests_per_minute=2)])
    assert remaining(some, who) == (0, None)
    clock.now += 30
    assert remaining(some, who) == (1, None)  # the change alone made no debt
    some.settle("r", 10, 1, failed=False)
    assert some.held(who) == (3, 3)


def test_what_runs_for_a_tenant_that_is_gone_is_still_counted_out() -> None:
    who = tenant(concurrent=1)
    some, _ = meters(who)
    some.reserve(who).submit("r")
    some.configure([])
    some.configure([who])
    assert refused(some, who).limit == "concurrent"
    some.settle("r", 1, 1, failed=False)
    some.configure([])
    assert some.held(who) == (0, 0)


@pytest.mark.parametrize(
    ("used", "size", "left"), [(7, 100, 93), (7, 5, 0), (0, 5, 5), (15, 100, 85), (15, 5, -5)]
)
def test_a_resized_bucket(used: int, size: int, left: int) -> None:
    bucket = Bucket(10, 0.0)
    bucket.take(used, 0.0)
    assert bucket.resized(size, 0.0).level(0.0) == left


LIMITS = Limits(requests_per_minute=30, tokens_per_minute=900, concurrent=6, queued=3)
WHO = Tenant("a", limits=LIMITS)


class Sequences(RuleBasedStateMachine):
    """Any order of reservations, uses and ends; the books are kept a second time, and simply."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.meters = Meters([WHO], self.clock)
        self.open: list[tuple[Admission, list[bool]]] = []  # admissions, and which places wait
        self.live: dict[str, tuple[Admission, bool, bool]] = {}  # waits, started
        self.count = 0

    @rule(seconds=st.floats(0, 30))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(places=st.integers(1, 7), tokens=st.integers(0, 400), rows=st.integers(0, 3))
    def reserve(self, places: int, tokens: int, rows: int) -> None:
        held, queued = self.meters.held(WHO)
        waiting = max(0, places - rows)
        before = self.meters.standing(WHO)
        try:
            admission = self.meters.reserve(WHO, places, tokens, rows=rows)
        except OverLimit as error:
            assert self.meters.held(WHO) == (held, queued)
            assert self.meters.standing(WHO) == before
            self._honest(error, places, tokens)
            return
        assert held + places <= 6
        assert not waiting or queued + waiting <= 3
        self.open.append((admission, [i < waiting for i in range(places)]))

    def _honest(self, error: OverLimit, places: int, tokens: int) -> None:
        """What is refilled by the minute is there after the wait, and not before."""
        if error.limit not in ("requests", "tokens"):
            assert (error.retry_after is None) == (places > 6)
            return
        assert error.retry_after is not None
        self.clock.now += 0.99 * error.retry_after
        if error.retry_after > 0.01:
            assert self._asked_again(places, tokens) is not None
        self.clock.now += 0.01 * error.retry_after
        assert self._asked_again(places, tokens) in (None, "concurrent")

    def _asked_again(self, places: int, tokens: int) -> str | None:
        try:
            self.meters.reserve(WHO, places, tokens, rows=places).close(refused=True)
        except OverLimit as error:
            return error.limit
        return None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def submit(self, data: st.DataObject) -> None:
        admission, waits = data.draw(st.sampled_from(self.open))
        if waits:
            name = f"r{self.count}"
            self.count += 1
            admission.submit(name)
            self.live[name] = (admission, waits.pop(), False)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), refused=st.booleans())
    def close(self, data: st.DataObject, refused: bool) -> None:
        entry = data.draw(st.sampled_from(self.open))
        entry[0].close(refused=refused)
        entry[0].close(refused=refused)
        self.open.remove(entry)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.meters.started(name)
        admission, waits, _ = self.live[name]
        self.live[name] = (admission, waits, True)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), prompt=st.integers(1, 300), made=st.integers(0, 50), failed=st.booleans())
    def end(self, data: st.DataObject, prompt: int, made: int, failed: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        for _ in range(made):
            self.meters.generated(name)
        for _ in range(2):
            self.meters.settle(name, prompt, made, failed=failed)
        del self.live[name]

    @invariant()
    def the_books_agree(self) -> None:
        held = len(self.live) + sum(len(waits) for _, waits in self.open)
        queued = sum(waits and not started for _, waits, started in self.live.values())
        queued += sum(sum(waits) for _, waits in self.open)
        assert self.meters.held(WHO) == (held, queued)
        assert held <= 6 and queued <= 3

    @invariant()
    def no_bucket_runs_over(self) -> None:
        for level in self.meters.standing(WHO):
            assert level is not None
            assert 0 <= level.remaining <= level.limit
            assert level.reset >= 0

    def teardown(self) -> None:
        for admission, _ in self.open:
            admission.close(refused=True)
        for name in self.live:
            self.meters.settle(name, 1, 0, failed=True)
        assert self.meters.held(WHO) == (0, 0)
        self.clock.now += 3600 * 24
        assert [level and level.remaining for level in self.meters.standing(WHO)] == [30, 900]


Sequences.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSequences = Sequences.TestCase


@pytest.mark.parametrize("seed", range(5))
def test_no_more_goes_through_than_a_burst_and_the_refill(seed: int) -> None:
    rng = random.Random(seed)
    who = tenant(requests_per_minute=60, tokens_per_minute=3000)
    some, clock = meters(who)
    began, requests, tokens = clock.now, 0, 0
    for i in range(3000):
        clock.now += rng.expovariate(10)
        size = rng.randrange(1, 200)
        try:
            admission = some.reserve(who, 1, size)
        except OverLimit as error:
            assert error.retry_after is not None and error.retry_after > 0
            continue
        admission.submit(str(i))
        some.started(str(i))
        some.settle(str(i), size - 1, 1, failed=False)
        requests, tokens = requests + 1, tokens + size
        minutes = (clock.now - began) / 60
        assert requests <= 60 * (1 + minutes) + 1e-6
        assert tokens <= 3000 * (1 + minutes) + 1e-6
    assert requests > 60 or tokens > 3000
