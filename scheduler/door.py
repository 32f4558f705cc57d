"""Whether a model takes requests, and which of them keep it from being unloaded.

The one thing that event loop and engine thread both write, hence the lock.
"""

from __future__ import annotations

import threading


class Hold:
    """One request's claim on a model, from before its prompt is tokenised on."""

    __slots__ = ()


class Door:
    """Open while the model is loaded and to stay. Only ``enter`` is for the event loop.

    Holds are let go on the engine thread, in the order of its inbox: so none ends before the
    request that it was taken for has arrived.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._holds: set[Hold] = set()

    def enter(self, hold: Hold) -> bool:
        """Takes a hold, if the door is open."""
        with self._lock:
            if self._open:
                self._holds.add(hold)
            return self._open

    def admit(self, hold: Hold) -> None:
        """Takes a hold whether the door is open or not."""
        with self._lock:
            self._holds.add(hold)

    def leave(self, hold: Hold) -> None:
        """Lets a hold go; one that is not there is left alone."""
        with self._lock:
            self._holds.discard(hold)

    def open(self) -> None:
        """Lets holds in."""
        with self._lock:
            self._open = True

    def close(self) -> None:
        """Lets no more holds in; those that are in stay."""
        with self._lock:
            self._open = False

    @property
    def holds(self) -> int:
        """How many are in."""
        return len(self._holds)
