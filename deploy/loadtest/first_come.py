"""The server without fairness: first come, first served, and what was used least recently goes.

The yardstick for what fairness costs and brings. ``python -m deploy.loadtest.first_come serve ...``
takes what ``commons`` takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cache.shares import NO_CLAIM, Claim, Kept, Shares
from scheduler import claims, scheduler
from scheduler.entry import Entry
from scheduler.queue import FairQueue
from server import cli


def by_arrival(queue: FairQueue, hits: Mapping[Entry, int]) -> Iterator[Entry]:
    """All that wait, in the order in which they came."""
    return iter(sorted(queue, key=lambda e: e.accepted))


def oldest(prefilling: Sequence[Entry]) -> Entry:
    """Whose prompt came first."""
    return min(prefilling, key=lambda e: e.accepted)


def nobody(*_: object) -> None:
    """Nobody makes way."""


def least_recent(shares: Shares, claim: Claim = NO_CLAIM) -> tuple[Kept, str] | None:
    """The least recently used leaf of all tenants, and one that gives it up."""
    leaves = [(leaf, user) for user, a in shares._accounts.items() if (leaf := a.leaves.first())]
    return min(leaves, key=lambda each: each[0].last_used, default=None)


if __name__ == "__main__":
    FairQueue.ranked = by_arrival
    scheduler.next_prefill = oldest
    claims.for_row = claims.for_memory = nobody
    Shares.first = least_recent
    cli.main()
