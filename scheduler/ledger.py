"""What each tenant has had of the engine's time, and who is owed most.

Virtual counters as in VTC (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024),
on measured seconds instead of prices for tokens. Owned by the engine thread and shared by the
schedulers of all its models. Knows nothing of requests.
"""

from __future__ import annotations

from cache.loan import PUBLIC, Share

from .tenant import Tenant

TYPICAL_REPLY = 64.0  # tokens; until a tenant's own are known
MEMORY = 0.9  # weight of the past in the mean length of a tenant's replies


class Account:
    """One tenant's. ``service`` is in seconds of engine time, divided by the weight.

    ``promised``, in the same unit, is what its running requests are expected to take yet.
    ``requests`` counts those that wait or run, ``waiting`` the former.
    """

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.service = 0.0
        self.promised = 0.0
        self.requests = 0
        self.waiting = 0
        self.reply = TYPICAL_REPLY

    @property
    def name(self) -> str:
        """The tenant's."""
        return self.tenant.name

    @property
    def weight(self) -> float:
        """The tenant's, as it is configured now."""
        return self.tenant.weight

    @property
    def claim(self) -> float:
        """Who has the least goes first."""
        return self.service + self.promised

    def charge(self, seconds: float) -> None:
        """Counts engine time."""
        self.service += seconds / self.weight

    def replied(self, tokens: int) -> None:
        """Learns the length of a reply."""
        self.reply = MEMORY * self.reply + (1 - MEMORY) * tokens


class Ledger:
    """The accounts of all tenants."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._left = 0.0  # the service of the last one to have no request any more

    def join(self, tenant: Tenant) -> Account:
        """The account of a request that has just been accepted.

        A tenant that has none waiting begins where those are that have: time that it did not ask
        for is not saved up, and what was used while nobody else wanted it is not held against
        anyone.
        """
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant)
        account.tenant = tenant
        if not account.waiting:
            account.service = max(account.service, self._level())
        account.requests += 1
        return account

    def _level(self) -> float:
        """The service of who is owed most: of those that wait, else that run, else that left."""
        waiting = [a.service for a in self._accounts.values() if a.waiting]
        running = [a.service for a in self._accounts.values() if a.requests]
        return min(waiting or running or [self._left])

    def leave(self, account: Account) -> None:
        """A request has ended."""
        account.requests -= 1
        if not account.requests:
            self._left = account.service

    def spread(self, share: Share, borrower: Account, token_seconds: float) -> None:
        """Lets a tenant take part in what tokens have cost that it uses for the first time.

        Each of the k tenants that use them has then paid a k-th part. What is public costs nobody.
        """
        if PUBLIC in share.payers or borrower.name in share.payers:
            return
        cost, before = share.tokens * token_seconds, len(share.payers)
        borrower.charge(cost / (before + 1))
        for name in share.payers:
            payer = self._accounts.get(name)
            if payer is not None:
                payer.charge(-cost / (before * (before + 1)))

    @property
    def active(self) -> list[Account]:
        """Those with requests."""
        return [account for account in self._accounts.values() if account.requests]
