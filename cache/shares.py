"""What each tenant's cached KV takes, and whose is given up when room is needed.

Max-min fair: the tenant that takes most for its weight gives up its own, least recently used
first. Shared by all trees that give up memory for each other. Owned by the engine thread; knows
of a node its users, how recent it is, and how to let it go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from .leaf_queue import Leaf, LeafQueue


class Clock:
    """Counts uses and nodes; trees whose nodes are compared by recency share one."""

    __slots__ = ("_serial", "now")

    def __init__(self) -> None:
        self.now = 0
        self._serial = 0

    def tick(self) -> int:
        """The next moment."""
        self.now += 1
        return self.now

    def serial(self) -> int:
        """The number of a new node."""
        self._serial += 1
        return self._serial


class Kept(Leaf, Protocol):
    """A leaf that its users keep; it is charged to them in equal parts."""

    @property
    def users(self) -> tuple[str, ...]:
        """Distinct names; empty where everybody uses it and nobody is charged."""
        ...

    def give_up(self, user: str) -> int:
        """``user`` keeps it no longer; the bytes freed, which are none while others do."""
        ...


class Part(NamedTuple):
    """A tenant's part of the memory, by weight, and at most so many bytes of it."""

    weight: float = 1.0
    most: int | None = None


class Claim(NamedTuple):
    """Who wants ``size`` bytes: a tenant, or None, who may take from all.

    A tenant takes from itself, and from those that would still have more than it has then, for
    their weights. ``rows`` are bytes by tenant that running rows hold beside what is cached.
    """

    user: str | None = None
    size: int = 0
    rows: Mapping[str, int] = MappingProxyType({})


EQUAL = Part()
NO_CLAIM = Claim()


class Account:
    """What is charged to one tenant, in bytes, and the leaves that it could give up."""

    __slots__ = ("leaves", "nbytes", "part", "user")

    def __init__(self, user: str, part: Part) -> None:
        self.user = user
        self.part = part
        self.nbytes = 0
        self.leaves: LeafQueue[Kept] = LeafQueue()

    @property
    def shrinks(self) -> bool:
        """Whether the tenant is above its limit and has something that it can give up."""
        above = self.part.most is not None and self.nbytes > self.part.most
        return above and self.leaves.first() is not None

    def shrink(self, size: int) -> bool:
        """Whether ``size`` more bytes are within the limit, after giving up own leaves."""
        most = self.part.most
        if most is None:
            return True
        if size > most:
            return False  # and nothing is given up in vain
        while self.nbytes + size > most:
            leaf = self.leaves.first()
            if leaf is None:
                return False
            leaf.give_up(self.user)
        return True


class Shares:
    """The accounts of all tenants; one that is not configured has weight 1 and no limit."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._parts: dict[str, Part] = {}
        self._accounts: dict[str, Account] = {}

    def configure(self, parts: Mapping[str, Part]) -> None:
        """Sets weights (above 0) and limits from now on; who is above its limit gives up."""
        self._parts = dict(parts)
        for user, account in self._accounts.items():
            account.part = parts.get(user, EQUAL)
        self.trim()

    def charged(self) -> dict[str, int]:
        """Bytes by tenant, of those that are charged any."""
        return {user: a.nbytes for user, a in self._accounts.items() if a.nbytes}

    def charge(self, users: Sequence[str], before: int, after: int) -> None:
        """A node of ``users`` has grown or shrunk from ``before`` bytes to ``after``. O(users).

        Each one's part is a whole number and a function of the size alone, the first ones taking
        the odd bytes; so the parts of all nodes always add up exactly.
        """
        if before == after:
            return
        count = len(users)
        for i, user in enumerate(users):
            odd = count - 1 - i
            self._account(user).nbytes += (after + odd) // count - (before + odd) // count

    def offer(self, node: Kept) -> None:
        """Queues ``node`` for each user where it is a leaf and not on loan. O(users log nodes)."""
        for user in node.users:
            self._account(user).leaves.offer(node)

    def forget(self, node: Kept, user: str | None = None) -> None:
        """Drops a node that ``user`` (None: nobody) keeps any longer. Amortised O(users)."""
        for each in node.users if user is None else (user,):
            self._account(each).leaves.forget(node)

    def first(self, claim: Claim = NO_CLAIM) -> tuple[Kept, str] | None:
        """The leaf that goes next, and who gives it up; None where all is on loan.

        It is the least recently used one of the tenant that takes most for its weight, among
        those that have one, and that ``claim`` may take from. Runtime complexity: O(tenants),
        amortised O(log nodes) each.
        """
        rows, level = claim.rows, -1.0
        if claim.user is not None:
            own = self._account(claim.user)
            level = (own.nbytes + rows.get(claim.user, 0) + claim.size) / own.part.weight
        found: tuple[Kept, str] | None = None
        least: tuple[float, int] | None = None
        for user, account in self._accounts.items():
            taken = (account.nbytes + rows.get(user, 0)) / account.part.weight
            if (taken <= level and user != claim.user) or not (leaf := account.leaves.first()):
                continue
            if least is None or (-taken, leaf.last_used) < least:
                found, least = (leaf, user), (-taken, leaf.last_used)
        return found

    def evict(self, claim: Claim = NO_CLAIM) -> int:
        """Lets the next leaf go; the bytes freed (0 while others keep it), or -1 for none left."""
        found = self.first(claim)
        return -1 if found is None else found[0].give_up(found[1])

    def admit(self, users: Sequence[str], size: int) -> bool:
        """Whether one of ``users`` may keep its part of ``size`` more bytes.

        For that, it gives up own leaves where it would be above its limit.
        """
        part = -(-size // max(1, len(users)))
        return any(self._account(user).shrink(part) for user in users)

    def trim(self) -> None:
        """Who is above its limit gives up own leaves, as long as it has any."""
        # What one gives up is charged to those who keep it: they may be above theirs then.
        while any(account.shrinks for account in self._accounts.values()):
            for account in self._accounts.values():
                account.shrink(0)

    def problems(self, tree: object, nodes: Sequence[Kept]) -> Iterator[str]:
        """What is wrong with the queues for a tree that has ``nodes``."""
        for user in {u for n in nodes for u in n.users}.union(self._accounts):
            own = [n for n in nodes if user in n.users]
            for problem in self._account(user).leaves.problems(own, tree):
                yield f"{user}: {problem}"

    def _account(self, user: str) -> Account:
        account = self._accounts.get(user)
        if account is None:
            account = self._accounts[user] = Account(user, self._parts.get(user, EQUAL))
        return account


class Ledger:
    """What the trees of one model hold and have given up; their nodes are charged to ``shares``."""

    __slots__ = ("evicted_tokens", "nbytes", "shares")

    def __init__(self, shares: Shares | None = None) -> None:
        self.shares = shares or Shares()
        self.nbytes = 0
        self.evicted_tokens = 0
