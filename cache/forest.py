"""The prefix caches of one model, one per namespace, that share memory and give it up in one order.

Owned by the engine thread. Knows nothing of models or of scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .namespace import Namespace
from .prefix_cache import NO_STATS, PrefixCache, Stats
from .radix import Clock

Make = Callable[[Clock], PrefixCache]


class Forest:
    """Prefix caches by namespace; ``make`` makes one whose tree runs on the common clock.

    What was used least recently in any namespace is given up first. Forests that give up memory
    for each other share a ``clock``, too.
    """

    def __init__(self, make: Make, clock: Clock | None = None) -> None:
        self._make = make
        self._clock = clock or Clock()
        self._caches: dict[Namespace, PrefixCache] = {}
        self._evicted = 0  # in namespaces that are gone

    def of(self, namespace: Namespace) -> PrefixCache:
        """The cache of ``namespace``, made where there is none yet."""
        cache = self._caches.get(namespace)
        if cache is None:
            cache = self._caches[namespace] = self._make(self._clock)
        return cache

    def __iter__(self) -> Iterator[PrefixCache]:
        return iter(self._caches.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all trees."""
        return sum(cache.tree.nbytes for cache in self._caches.values())

    @property
    def evicted_tokens(self) -> int:
        """Tokens given up so far."""
        return self._evicted + sum(cache.evicted_tokens for cache in self._caches.values())

    def oldest(self) -> int | None:
        """When the leaf was last used that ``evict`` would drop; None where there is none."""
        found = self._oldest()
        return None if found is None else found[0]

    def evict(self) -> int:
        """Drops the least recently used leaf of all that are not on loan; its bytes, or -1."""
        found = self._oldest()
        return -1 if found is None else found[1].evict()

    def _oldest(self) -> tuple[int, PrefixCache] | None:
        """The cache with the least recently used leaf, and when that was."""
        found: tuple[int, PrefixCache] | None = None
        for cache in self._caches.values():
            leaf = cache.tree.evictable()
            if leaf is not None and (found is None or leaf.last_used < found[0]):
                found = leaf.last_used, cache
        return found

    def drop(self, namespace: Namespace) -> None:
        """Forgets a namespace, of which nothing is on loan any more."""
        cache = self._caches.pop(namespace, None)
        if cache is not None:
            cache.clear()
            assert not cache.tree.nodes, "something is on loan"
            self._evicted += cache.evicted_tokens

    def clear(self) -> None:
        """Forgets all namespaces; nothing is on loan any more."""
        for namespace in list(self._caches):
            self.drop(namespace)

    def stats(self) -> Stats:
        """The sizes of all caches together."""
        each = [cache.stats() for cache in self._caches.values()]
        return Stats(*(sum(sizes) for sizes in zip(NO_STATS, *each, strict=True)))
