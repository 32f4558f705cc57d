"""The series of tenants' limits, made from their meters when somebody scrapes.

On the event loop, like the meters. Only configured tenants have any, from 0 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .limits import LIMITS, Meters
from .tenant import DEFAULT, Tenant

RUNNING = "Requests that have been accepted and do not wait for a row"
WAITING = "Requests that wait for a row"
WEIGHT = "Part of the engine's time, in proportion to others'"
USED = "Used part of a limit; 0 where there is none"
REFUSALS = "Responses refused for a limit"


class LimitMetrics(Collector):
    """Registers itself with ``registry``; ``refresh`` brings the meters up to date."""

    def __init__(
        self, meters: Meters, refresh: Callable[[], None], registry: CollectorRegistry
    ) -> None:
        self._meters = meters
        self._refresh = refresh
        self._tenants: tuple[Tenant, ...] = (DEFAULT,)
        registry.register(self)

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Takes over who is configured; without anybody, that is the tenant ``default``."""
        self._tenants = tuple(tenants) or (DEFAULT,)

    def collect(self) -> Iterable[Metric]:
        """All families, for a scrape."""
        self._refresh()
        by = ["tenant"]
        weight = GaugeMetricFamily("commons_tenant_weight", WEIGHT, labels=by)
        running = GaugeMetricFamily("commons_tenant_requests_running", RUNNING, labels=by)
        waiting = GaugeMetricFamily("commons_tenant_requests_waiting", WAITING, labels=by)
        by = ["tenant", "limit"]
        used = GaugeMetricFamily("commons_tenant_limit_used_ratio", USED, labels=by)
        refusals = CounterMetricFamily("commons_tenant_limit_refusals", REFUSALS, labels=by)
        for tenant in self._tenants:
            use = self._meters.use_of(tenant)
            weight.add_metric([tenant.name], tenant.weight)
            running.add_metric([tenant.name], use.held - use.queued)
            waiting.add_metric([tenant.name], use.queued)
            for limit in LIMITS:
                used.add_metric([tenant.name, limit], use.used[limit])
                refusals.add_metric([tenant.name, limit], use.refusals[limit])
        return weight, running, waiting, used, refusals
