"""Who goes next where several share the engine thread: equal seconds for all that have work.

Start-time fair queueing (Goyal, Vin, Cheng, 1996) on measured time. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    """Seconds used by each; who used the least goes next.

    Who comes back from having no work begins where the others are: idle time is not saved up,
    and what was used while nobody else wanted it is not held against anyone.
    """

    def __init__(self) -> None:
        self._used: dict[K, float] = {}
        self._ready: frozenset[K] = frozenset()
        self._now = 0.0  # what the last one to go had used before

    def choose(self, ready: Sequence[K]) -> K:
        """Who of ``ready``, which are all that have work, goes next; the first of equals."""
        for key in ready:
            if key not in self._ready:
                self._used[key] = max(self._used.get(key, 0.0), self._now)
        self._ready = frozenset(ready)
        chosen = min(ready, key=lambda key: self._used[key])
        self._now = self._used[chosen]
        return chosen

    def charge(self, key: K, seconds: float) -> None:
        """Counts what ``key`` has just used."""
        self._used[key] += seconds
