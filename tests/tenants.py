"""Who used which tokens, by a naive model: what a row's loan must say."""

from __future__ import annotations

from array import array
from collections import defaultdict
from itertools import groupby

from cache.forest import Forest
from cache.loan import PUBLIC, Borrower, Loan, Share
from cache.namespace import Namespace

# Two tenants that share a domain, one of another, and a request that narrowed its own.
MIX = (
    Borrower("ann", "team"),
    Borrower("bob", "team"),
    Borrower("eve", "other"),
    Borrower("ann", "team/salt"),
)


class Users:
    """The users of every prefix in every namespace, the one that computed it first."""

    def __init__(self) -> None:
        self._users: defaultdict[tuple[Namespace, bytes], tuple[str, ...]] = defaultdict(tuple)

    def add(self, name: Namespace, tokens: array[int], tenant: str) -> None:
        """``tenant`` uses all of ``tokens``."""
        for prefix in _prefixes(tokens):
            users = self._users[name, prefix]
            if tenant not in users:
                self._users[name, prefix] = (*users, tenant)

    def loan(self, name: Namespace, tokens: array[int], tenant: str) -> Loan:
        """What a row of ``tenant`` must be told that was lent all of ``tokens``."""
        lenders: defaultdict[str, int] = defaultdict(int)
        payers = []
        for prefix in _prefixes(tokens):
            users = self._users[name, prefix]
            lenders[users[0] if users else PUBLIC] += 1
            payers.append(() if tenant in users else users)
        shares = tuple(Share(len(list(same)), users) for users, same in groupby(payers) if users)
        return Loan(dict(lenders), shares)


def check_forest(forest: Forest) -> None:
    """The books of all trees together; they must share memory with no other forest."""
    charged: defaultdict[str, int] = defaultdict(int)
    for cache in forest:
        cache.tree.check()
        for node in cache.tree.walk():
            for i, user in enumerate(node.users):
                odd = i < node.nbytes % len(node.users)
                charged[user] += node.nbytes // len(node.users) + odd
    assert forest.ledger.shares.charged() == {u: n for u, n in charged.items() if n}
    assert forest.nbytes == sum(charged.values())
    assert all(cache.leases or cache.tree.nbytes for cache in forest), "an empty cache is kept"


def _prefixes(tokens: array[int]) -> list[bytes]:
    data = tokens.tobytes()
    return [data[: end * tokens.itemsize] for end in range(1, len(tokens) + 1)]
