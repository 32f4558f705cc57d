"""Who borrows from a prefix cache, and what it thereby owes to whom.

Pure values. Knows nothing of trees or of scheduling.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NOBODY = "default"
PUBLIC = "public"  # to whom the prompts that are lent to all domains belong


class Borrower(NamedTuple):
    """For whom a row runs: its tenant, and the trust domain inside which prefixes are lent."""

    tenant: str = NOBODY
    domain: str = NOBODY


class Share(NamedTuple):
    """So many tokens that the borrower's tenant uses for the first time.

    ``payers`` are the tenants that have used them before, the one that computed them first: they
    have paid for the computation in equal parts, and the borrower joins them.
    """

    tokens: int
    payers: tuple[str, ...]


class Loan(NamedTuple):
    """What a row found in the cache: tokens by the tenant that computed them, and new shares."""

    lenders: Mapping[str, int] = MappingProxyType({})
    shares: tuple[Share, ...] = ()


NO_LOAN = Loan()
ANYBODY = Borrower()
