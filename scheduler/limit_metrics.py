"""The series of tenants' limits. Only configured tenants have any, from 0 on.

What the meters say is noted on the event loop, where they live; a scrape reads it anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .limits import LIMITS, Meters, Use
from .tenant import DEFAULT, Tenant

RUNNING = "Requests that have been accepted and do not wait for a row"
WAITING = "Requests that wait for a row"
WEIGHT = "Part of the engine's time, in proportion to others'"
USED = "Used part of a limit; 0 where there is none"
REFUSALS = "Responses refused for a limit"


class LimitMetrics(Collector):
    """Registers itself with ``registry``."""

    def __init__(self, meters: Meters, registry: CollectorRegistry) -> None:
        self._meters = meters
        self.configure(())
        registry.register(self)

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Takes over who is configured; without anybody, that is the tenant ``default``."""
        self._tenants = tuple(tenants) or (DEFAULT,)
        self.observe()

    def observe(self) -> None:
        """Notes how all tenants stand."""
        self._uses: list[tuple[Tenant, Use]] = [
            (tenant, self._meters.use_of(tenant)) for tenant in self._tenants
        ]

    def collect(self) -> Iterable[Metric]:
        """All families, for a scrape."""
        by = ["tenant"]
        weight = GaugeMetricFamily("commons_tenant_weight", WEIGHT, labels=by)
        running = GaugeMetricFamily("commons_tenant_requests_running", RUNNING, labels=by)
        waiting = GaugeMetricFamily("commons_tenant_requests_waiting", WAITING, labels=by)
        by = ["tenant", "limit"]
        used = GaugeMetricFamily("commons_tenant_limit_used_ratio", USED, labels=by)
        refusals = CounterMetricFamily("commons_tenant_limit_refusals", REFUSALS, labels=by)
        for tenant, use in self._uses:
            weight.add_metric([tenant.name], tenant.weight)
            running.add_metric([tenant.name], use.held - use.queued)
            waiting.add_metric([tenant.name], use.queued)
            for limit in LIMITS:
                used.add_metric([tenant.name, limit], use.used[limit])
                refusals.add_metric([tenant.name, limit], use.refusals[limit])
        return weight, running, waiting, used, refusals
