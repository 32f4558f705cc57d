"""The requests that wait, and in which order they get their rows. Engine thread only.

Interactive requests go before batch ones; between tenants, who is owed most goes first; within
one, its agents take turns, and of those whose turn it is, the longest cached prefix goes first, as
in Deficit Longest Prefix Match (Cao et al., Locality-aware Fair Scheduling, 2025).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .entry import Entry
from .order import MOST_PASSED_OVER, outranked

MOST_AGENTS = 1024  # of a tenant that are remembered; clients name as many as they like


class AgentTurns:
    """Which agents of each tenant have had their turn in the present round.

    A request that names no agent counts as one of its own. A round ends when all that wait have
    had their turn, when nobody waits, or when too many agents would have to be remembered.
    """

    def __init__(self) -> None:
        self._served: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._served.values()))

    def settle(self, tenant: str, waiting: Sequence[Entry]) -> None:
        """Begins a new round where all that wait have had their turn."""
        served = self._served.get(tenant)
        if served and all(entry.request.agent in served for entry in waiting):
            del self._served[tenant]

    def take(self, entry: Entry) -> None:
        """An agent has its turn; its request does not wait any more."""
        if not entry.account.waiting:
            self._served.pop(entry.account.name, None)
        elif entry.request.agent:
            served = self._served.setdefault(entry.account.name, set())
            if len(served) >= MOST_AGENTS:
                served.clear()
            served.add(entry.request.agent)

    def had(self, entry: Entry) -> bool:
        """Whether the request's agent has had its turn."""
        return entry.request.agent in self._served.get(entry.account.name, ())


class FairQueue:
    """The waiting requests of one scheduler."""

    def __init__(self) -> None:
        self._waiting: list[Entry] = []
        self.turns = AgentTurns()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._waiting)

    def add(self, entry: Entry) -> None:
        """One more waits."""
        self._waiting.append(entry)
        entry.account.waiting += 1

    def remove(self, entry: Entry) -> None:
        """One waits no more."""
        self._waiting.remove(entry)
        entry.account.waiting -= 1

    def ranked(self, hits: Mapping[Entry, int]) -> Iterator[Entry]:
        """All that wait; what is admitted meanwhile counts at once.

        ``hits`` are the tokens that the cache has for each. O(n log n) and, for each entry taken,
        O(tenants).
        """
        groups: dict[tuple[bool, str], list[Entry]] = {}
        for entry in self._waiting:
            groups.setdefault((outranked(entry), entry.account.name), []).append(entry)
        for (_, tenant), group in groups.items():
            self.turns.settle(tenant, group)
            group.sort(key=lambda e: self._within(e, hits[e]))
            group.reverse()  # the first is taken from the end
        while groups:
            key = min(groups, key=lambda k: (k[0], groups[k][-1].account.claim))
            group = groups[key]
            yield group.pop()
            if not group:
                del groups[key]

    def admit(self, entry: Entry) -> None:
        """One gets its row, before all that still wait."""
        self.remove(entry)
        self.turns.take(entry)
        for other in self._waiting:
            if other.accepted > entry.accepted:
                continue
            if other.account is entry.account and outranked(other) == outranked(entry):
                other.passed_over += 1
            elif outranked(other) and not outranked(entry):
                other.outranked += 1

    def _within(self, entry: Entry, hit: int) -> tuple[bool, bool, int, float]:
        """The order within a tenant, first things first."""
        patient = entry.passed_over < MOST_PASSED_OVER
        return patient, self.turns.had(entry), -hit, entry.accepted
