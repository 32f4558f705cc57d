"""The server with one rule in place of fairness: first come, first served.

The yardstick for what fairness costs. ``python -m deploy.loadtest.first_come serve ...`` takes
what ``commons`` takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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


if __name__ == "__main__":
    FairQueue.ranked = by_arrival
    scheduler.next_prefill = oldest
    claims.for_row = claims.for_memory = nobody
    cli.main()
