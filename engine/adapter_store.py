"""Which adapters a model has: known by name and path, some of them in memory. Engine thread only.

A bounded number is in memory at once; what was used least recently, has no row and is not pinned
makes room for what a row needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cache.namespace import weights_digest

from .adapter_files import AdapterError, LowRank, read_adapter
from .adapters import Adapters


class AdapterState(NamedTuple):
    """One adapter as an operator sees it; ``nbytes`` are of its weights, 0 while not in memory."""

    name: str
    path: str
    pinned: bool
    resident: bool
    rows: int
    nbytes: int


@dataclass(eq=False, slots=True)
class _Known:
    path: Path
    digest: str
    pinned: bool
    nbytes: int = 0
    rows: int = 0
    used: int = 0


class AdapterStore:
    """Adapters of one model. ``forget`` is told the digest of one whose KV is of no use any more.

    ``slots`` bounds how many are in memory; pinned ones count, too.
    """

    def __init__(self, adapters: Adapters, slots: int, forget: Callable[[str], None]) -> None:
        self._adapters = adapters
        self._slots = slots
        self._forget = forget
        self._known: dict[str, _Known] = {}
        self._uses = 0

    def register(self, name: str, path: Path, *, pinned: bool = False) -> None:
        """Reads an adapter and makes it known; in memory as long as there is a slot.

        Raises AdapterError for what cannot be served, for a name that is taken, and for one
        more pinned adapter than there are slots.
        """
        if name in self._known:
            raise AdapterError(f"there is an adapter {name!r} already")
        updates = read_adapter(path, self._adapters.modules)
        self._known[name] = _Known(path, weights_digest(path), pinned=False)
        self._touch(name)
        if self._make_slot():
            self._insert(name, updates)
        try:
            self.pin(name, pinned)
        except AdapterError:
            self.unregister(name)
            raise

    def unregister(self, name: str) -> None:
        """Forgets an adapter that no row has."""
        known = self._known[name]
        assert not known.rows, f"a row has {name}"
        self._evict(name)
        del self._known[name]
        self._drop(known.digest)

    def pin(self, name: str, pinned: bool) -> None:
        """Keeps an adapter in memory, or allows it to leave. Raises AdapterError for no slot."""
        known = self._known[name]
        if pinned and not known.pinned and not self._load(name):
            raise AdapterError(f"no slot is left to pin {name!r}: all are pinned or in use")
        known.pinned = pinned

    def digest(self, name: str) -> str:
        """What names the KV made with the adapter."""
        return self._known[name].digest

    def acquire(self, name: str) -> bool:
        """Brings an adapter into memory for one more row; False: not now.

        Raises AdapterError where its files cannot be read any more.
        """
        if not self._load(name):
            return False
        self._known[name].rows += 1
        return True

    def release(self, name: str) -> None:
        """One row fewer."""
        self._known[name].rows -= 1

    def states(self) -> list[AdapterState]:
        """All that are known."""
        return [
            AdapterState(
                name, str(k.path), k.pinned, name in self._adapters.names, k.rows, k.nbytes
            )
            for name, k in self._known.items()
        ]

    def _load(self, name: str) -> bool:
        known = self._known[name]
        self._touch(name)
        if name in self._adapters.names:
            return True
        if not self._make_slot():
            return False
        updates = read_adapter(known.path, self._adapters.modules)
        digest = weights_digest(known.path)
        if digest != known.digest:  # the files were replaced: other weights, other KV
            before, known.digest = known.digest, digest
            self._drop(before)
        self._insert(name, updates)
        return True

    def _make_slot(self) -> bool:
        """Whether one more adapter may come into memory, after one has left if need be."""
        resident = self._adapters.names
        if len(resident) < self._slots:
            return True
        idle = [n for n in resident if not (self._known[n].rows or self._known[n].pinned)]
        if not idle:
            return False
        self._evict(min(idle, key=lambda n: self._known[n].used))
        return True

    def _touch(self, name: str) -> None:
        self._uses += 1
        self._known[name].used = self._uses

    def _insert(self, name: str, updates: Mapping[str, LowRank]) -> None:
        self._adapters.add(name, updates)
        self._known[name].nbytes = sum(u.nbytes for u in updates.values())

    def _evict(self, name: str) -> None:
        if name in self._adapters.names:
            self._adapters.remove(name)
            self._known[name].nbytes = 0

    def _drop(self, digest: str) -> None:
        # Two names may stand for the same files, and share what was computed with them.
        if all(k.digest != digest for k in self._known.values()):
            self._forget(digest)
