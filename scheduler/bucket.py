"""A token bucket: so much a minute, refilled continuously, a minute's worth at once."""

from __future__ import annotations

import math

MINUTE = 60.0  # seconds
TINY = 1e-6  # units; what rounding may lack counts as there


class Bucket:
    """``per_minute`` units at most; times are seconds on a clock that never goes back.

    What is taken may turn out to be more than was asked for: the level then goes below 0, and
    nobody gets anything before that is made up for.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """The units that are there; below 0 where more was used."""
        refilled = self._level + (now - self._at) * self.capacity / MINUTE
        self._level, self._at = min(float(self.capacity), refilled), now
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken; infinite for an empty bucket that stays so.

        More than the bucket holds may be taken when it is full, for otherwise it never could.
        """
        lacking = min(amount, self.capacity) - self.level(now)
        if not self.capacity:
            return math.inf
        return lacking * MINUTE / self.capacity if lacking > TINY else 0.0

    def full_in(self, now: float) -> float:
        """Seconds until it is full again, if nothing is taken."""
        lacking = self.capacity - self.level(now)
        return lacking * MINUTE / self.capacity if self.capacity else 0.0

    def take(self, amount: float, now: float) -> None:
        """Takes ``amount``, or puts it back where it is below 0."""
        self._level = min(float(self.capacity), self.level(now) - amount)

    def resized(self, per_minute: int, now: float) -> Bucket:
        """A bucket of another size in which as much has been used; that alone makes no debt."""
        level = self.level(now)
        other = Bucket(per_minute, now)
        other._level = max(per_minute - (self.capacity - level), min(level, 0.0))
        return other
