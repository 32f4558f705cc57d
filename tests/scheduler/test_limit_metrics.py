"""The metrics of limits: what meters say when they are looked at, for configured tenants alone."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from scheduler.limit_metrics import LimitMetrics
from scheduler.limits import LIMITS, Meters, OverLimit
from scheduler.tenant import DEFAULT, Limits, Tenant

A = Tenant("a", weight=2, limits=Limits(requests_per_minute=4, concurrent=4, queued=2))
B = Tenant("b")


class Shown:
    """The metrics of meters whose clock stands still."""

    def __init__(self, *tenants: Tenant) -> None:
        self.registry = CollectorRegistry()
        self.meters = Meters(tenants, clock=lambda: 0.0)
        self.metrics = LimitMetrics(self.meters, self.registry)
        self.metrics.configure(tenants)

    def __call__(self, name: str, tenant: Tenant, **labels: str) -> float | None:
        self.metrics.observe()
        labels["tenant"] = tenant.name
        return self.registry.get_sample_value(f"commons_tenant_{name}", labels)

    def used(self, tenant: Tenant) -> list[float | None]:
        return [self("limit_used_ratio", tenant, limit=limit) for limit in LIMITS]


def test_places_and_the_used_part_of_each_limit() -> None:
    shown = Shown(A, B)
    assert [shown("weight", tenant) for tenant in (A, B)] == [2, 1]
    assert shown.used(A) == shown.used(B) == [0, 0, 0, 0]
    places = [shown.meters.reserve(tenant, 2, 100, rows=1) for tenant in (A, B)]
    assert shown.used(A) == [0.5, 0, 0.5, 0.5]
    assert shown.used(B) == [0, 0, 0, 0]
    for tenant in (A, B):
        assert shown("requests_running", tenant) == shown("requests_waiting", tenant) == 1
    for admission in places:
        admission.close(refused=False)
    assert shown.used(A) == [0, 0, 0, 0]
    assert shown("requests_running", B) == shown("requests_waiting", B) == 0


def test_refusals_are_counted_by_the_limit_that_was_in_the_way() -> None:
    shown = Shown(A, B)
    for requests, rows in ((3, 0), (5, 5), (5, 5)):
        with pytest.raises(OverLimit):
            shown.meters.reserve(A, requests, rows=rows)
    found = {limit: shown("limit_refusals_total", A, limit=limit) for limit in LIMITS}
    assert found == {"requests": 0, "tokens": 0, "concurrent": 2, "queued": 1}
    assert all(shown("limit_refusals_total", B, limit=limit) == 0 for limit in LIMITS)


def test_who_is_no_longer_configured_has_no_series() -> None:
    shown = Shown(A, B)
    shown.meters.configure([B])
    shown.metrics.configure([B])
    assert (shown("weight", A), shown("weight", B)) == (None, 1)
    shown.metrics.configure([])
    assert (shown("weight", B), shown("weight", DEFAULT)) == (None, 1)
