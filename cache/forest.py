"""The prefix caches of one model, one per namespace, that share memory.

Owned by the engine thread. Knows nothing of models or of scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .namespace import PUBLIC_DOMAIN, Namespace
from .prefix_cache import PrefixCache
from .shares import Ledger, Shares

Make = Callable[[Ledger], PrefixCache]


class Forest:
    """Prefix caches by namespace; ``make`` makes one whose tree counts in the common ledger.

    Forests that give up memory for each other have the same ``shares``. A cache that holds nothing
    any more is forgotten, so that trust domains that are not seen again cost nothing.

    What the namespace with the ``PUBLIC_DOMAIN`` has is also in all others that differ from it
    in their domain alone; so it is complete before the first of them is made.
    """

    def __init__(self, make: Make, shares: Shares | None = None) -> None:
        self._make = make
        self.ledger = Ledger(shares)
        self._caches: dict[Namespace, PrefixCache] = {}

    def of(self, namespace: Namespace) -> PrefixCache:
        """The cache of ``namespace``, made where there is none; its first lease keeps it."""
        cache = self._caches.get(namespace)
        if cache is None:
            cache = self._caches[namespace] = self._make(self.ledger)
            cache.idle = lambda: self._forget(namespace)
            public = self._caches.get(namespace._replace(domain=PUBLIC_DOMAIN))
            if public is not None and public is not cache:
                cache.seed(public)
        return cache

    def find(self, namespace: Namespace) -> PrefixCache | None:
        """A cache that knows what that of ``namespace`` would know, if there is any."""
        public = namespace._replace(domain=PUBLIC_DOMAIN)
        return self._caches.get(namespace) or self._caches.get(public)

    def unseen(self, namespace: Namespace) -> bool:
        """Whether no domain has a cache for what ``namespace`` names but for its domain."""
        name = namespace._replace(domain=PUBLIC_DOMAIN)
        others = (n for n in self._caches if n.domain != PUBLIC_DOMAIN)
        return all(other._replace(domain=PUBLIC_DOMAIN) != name for other in others)

    def __len__(self) -> int:
        return len(self._caches)

    def __iter__(self) -> Iterator[PrefixCache]:
        return iter(self._caches.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all trees."""
        return self.ledger.nbytes

    @property
    def lent(self) -> int:
        """Bytes of what is borrowed just now, and of what is public."""
        lending = (c for n, c in self._caches.items() if c.leases or n.domain == PUBLIC_DOMAIN)
        return sum(cache.stats().lent for cache in lending)

    @property
    def evicted_tokens(self) -> int:
        """Tokens given up so far."""
        return self.ledger.evicted_tokens

    def evict(self) -> int:
        """Lets the next leaf go of all that share memory; see ``Shares.evict``."""
        return self.ledger.shares.evict()

    def drop(self, chosen: Callable[[Namespace], bool]) -> None:
        """Forgets the chosen namespaces, of which nothing is on loan any more."""
        # Public ones last: the others have views of their blocks.
        order = sorted(filter(chosen, self._caches), key=lambda n: n.domain == PUBLIC_DOMAIN)
        for namespace in order:
            self._caches.pop(namespace).close()

    def clear(self) -> None:
        """Forgets all namespaces; nothing is on loan any more."""
        self.drop(lambda _: True)

    def _forget(self, namespace: Namespace) -> None:
        self._caches.pop(namespace).close()
