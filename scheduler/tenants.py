"""The books of all tenants: what they hold of their limits, and what they have used.

On the event loop, but for what ``accounting`` returns, which the engine thread tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from .accounting import Accounting
from .events import Finished, Token
from .limit_metrics import LimitMetrics
from .limits import Admission, Meters
from .stats import SchedulerStats
from .tenant import Tenant
from .tenant_metrics import TenantMetrics
from .usage import Usage


class Tenants:
    """Limits, usage and metrics of the tenants of one server."""

    def __init__(self, tenants: Iterable[Tenant], registry: CollectorRegistry) -> None:
        self.meters = Meters()
        self.usage = Usage()
        self._metrics = TenantMetrics(self.usage, registry)
        self._limits = LimitMetrics(self.meters, registry)
        self._started: deque[str] = deque()  # names of requests, from the engine thread
        self.configure(tenants)

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Takes over a changed set of tenants; nothing that runs is touched."""
        tenants = tuple(tenants)
        self.meters.configure(tenants)
        self._metrics.configure(tenants)
        self._limits.configure(tenants)

    def observe(self) -> None:
        """Brings the gauges up to date, for a scrape."""
        self._note_started()
        self._limits.observe()

    def accounting(self, model: str, metrics: SchedulerStats) -> Accounting:
        """What a model's scheduler is to tell everything it counts."""
        return Accounting(metrics, model, self.usage, self._started.append)

    def reserve(self, tenant: Tenant, requests: int, estimated: int, rows: int) -> Admission:
        """As ``Meters.reserve``, with everything taken in that the engine has started."""
        self._note_started()
        return self.meters.reserve(tenant, requests, estimated, rows=rows)

    def note(self, event: Token | Finished) -> None:
        """Charges a token, or settles a request."""
        self._note_started()
        if isinstance(event, Token):
            self.meters.generated(event.request_id)
            return
        failed = event.reason == "error"
        prompt, made = event.prompt_tokens, event.completion_tokens
        self.meters.settle(event.request_id, prompt, made, failed=failed)

    def _note_started(self) -> None:
        while self._started:
            self.meters.started(self._started.popleft())
