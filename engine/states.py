"""State that is not kept by token (sliding windows, recurrent layers): mlx-lm's own caches.

While rows decode, their states lie in mlx-lm's batch caches; these are small, so joining and
leaving may rewrite them. Owned by the engine thread.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import RotatingKVCache

from cache.block import owned

if TYPE_CHECKING:
    from .rows import Row


class Snapshot(NamedTuple):
    """The states of one row after a certain token, by layer; never written again."""

    states: dict[int, Any]
    nbytes: int


def arrays(states: Any) -> list[mx.array]:
    """All arrays inside mlx-lm caches (or a dict of them)."""
    caches = states.values() if isinstance(states, dict) else [states]
    flat = tree_flatten([c.state for c in caches])
    return [x for _, x in flat if isinstance(x, mx.array)]


def nbytes(states: Any) -> int:
    """Bytes of all arrays inside mlx-lm caches."""
    return sum(int(x.nbytes) for x in arrays(states))


def most_bytes(cache: Any) -> int:
    """Bytes that the state of one row can come to, from a cache that has seen one token."""
    window = getattr(cache, "max_size", None)
    if window is None:
        return nbytes({0: cache})
    token = (cache.keys.nbytes + cache.values.nbytes) // cache.keys.shape[2]
    return int(token * window)


def compact(states: Any) -> None:
    """Cuts sliding windows down to what the next token may see; lazy.

    A prefill chunk leaves a window of its own length behind, which mlx-lm would cut with the
    next token only: snapshots and waiting rows would keep several times what they need.
    """
    for cache in states.values():
        if isinstance(cache, RotatingKVCache) and not cache.empty():
            spare = cache.keys.shape[2] - cache.max_size
            # Only after a chunk are the tokens in order of time.
            if spare > 0 and cache._idx == cache.keys.shape[2]:
                cache.keys = _without(cache.keys, cache.keep, spare)
                cache.values = _without(cache.values, cache.keep, spare)
                cache._idx = cache.max_size


def _without(x: mx.array, start: int, count: int) -> mx.array:
    """``x`` [B, heads, T, dim] less ``count`` tokens from ``start`` on, in a buffer of its own."""
    if not start:
        return owned(x[:, :, count:])
    return mx.concatenate([x[:, :, :start], x[:, :, start + count :]], axis=2)


def duplicate(states: dict[int, Any]) -> dict[int, Any]:
    """Caches with buffers of their own: generation writes into the arrays of a cache."""
    fresh = {}
    for layer, cache in states.items():
        twin = copy.copy(cache)
        twin.state = tree_map(lambda x: owned(x) if isinstance(x, mx.array) else x, cache.state)
        fresh[layer] = twin
    mx.eval(arrays(fresh))
    return fresh


def take_snapshot(states: dict[int, Any]) -> Snapshot:
    """A copy of the states as they are now; the steps that lead there must have been run."""
    kept = duplicate(states)
    return Snapshot(kept, nbytes(kept))


class StateBatch:
    """The states of all decoding rows, one mlx-lm batch cache per layer, in joining order."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.caches: dict[int, Any] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the batch caches."""
        return nbytes(self.caches)

    def join(self, row: Row) -> None:
        """Adds a row whose prompt is prefilled."""
        for layer, state in row.states.items():
            single = state.merge([state])
            if self.rows:
                self.caches[layer].extend(single)
            else:
                self.caches[layer] = single
        self.rows.append(row)
        row.states, row.batch = {}, self
        mx.eval(arrays(self.caches))

    def leave(self, row: Row, *, keep: bool) -> None:
        """Takes a row out; with ``keep`` its states are handed back to it as single caches."""
        kept = duplicate(self.extract(row)) if keep else {}
        index = self.rows.index(row)
        del self.rows[index]
        row.states, row.batch = kept, None
        if not self.rows:
            self.caches = {}
            return
        others = [i for i in range(len(self.rows) + 1) if i != index]
        for cache in self.caches.values():
            cache.filter(mx.array(others))
        mx.eval(arrays(self.caches))

    def extract(self, row: Row) -> dict[int, Any]:
        """Single-row caches with views of one row's states."""
        index = self.rows.index(row)
        return {layer: cache.extract(index) for layer, cache in self.caches.items()}

    def order(self, rows: Sequence[Row]) -> list[Row]:
        """``rows`` as they lie in the batch; they must be all of its rows."""
        assert len(rows) == len(self.rows)
        return list(self.rows)
