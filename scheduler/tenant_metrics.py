"""The series of tenants, made from their usage when somebody scrapes.

Only configured tenants have any, from 0 on, so that what a label may be is bounded. Public
prompts lend, too, under a name of their own.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from cache.loan import PUBLIC

from .tenant import DEFAULT, Tenant
from .usage import Counts, Usage

FAMILIES = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens of admitted requests"),
    "cached_tokens": ("cached_tokens", "Prompt tokens that the cache had"),
    "generation_tokens": ("generated_tokens", "Tokens generated"),
    "requests": ("requests", "Requests that ended"),
    "engine_seconds": ("engine_seconds", "Time of forward passes, by each request's part"),
    "queue_seconds": ("queue_seconds", "Time from acceptance to row, of all requests together"),
}
LENT = "Tokens that a request of the borrower found in the cache and the lender had computed"


class TenantMetrics(Collector):
    """Registers itself with ``registry``."""

    def __init__(self, usage: Usage, registry: CollectorRegistry) -> None:
        self._usage = usage
        self._names: tuple[str, ...] = (DEFAULT.name,)
        registry.register(self)

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Takes over who is configured; without anybody, that is the tenant ``default``."""
        self._names = tuple(tenant.name for tenant in tenants) or (DEFAULT.name,)

    def collect(self) -> Iterable[Metric]:
        """All families, for a scrape."""
        totals = self._usage.totals()
        counts = {name: totals.get(name, Counts()) for name in self._names}
        for name, (attribute, text) in FAMILIES.items():
            family = CounterMetricFamily(f"commons_tenant_{name}", text, labels=["tenant"])
            for tenant in self._names:
                family.add_metric([tenant], getattr(counts[tenant], attribute))
            yield family
        lent = CounterMetricFamily(
            "commons_prefix_cache_lent_tokens", LENT, labels=["lender", "borrower"]
        )
        for borrower in self._names:
            for lender in dict.fromkeys((*self._names, PUBLIC)):
                lent.add_metric([lender, borrower], counts[borrower].borrowed.get(lender, 0))
        yield lent
