"""Whose row makes way for whom. Engine thread only.

A row that makes way loses nothing that it computed: its KV goes into the tree, and it is lent back
when the request's turn comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .entry import Entry
from .ledger import Account, Ledger

MOST_DISPLACED = 4  # times that a row makes way for others' requests
Holding = Callable[[Entry], int]


def possible(running: Sequence[Entry], ledger: Ledger) -> bool:
    """Whether anybody may have to make way at all."""
    return len(ledger.active) > 1 or any(e.request.priority == "batch" for e in running)


def for_row(entry: Entry, running: Sequence[Entry], ledger: Ledger, most: int) -> Entry | None:
    """Who makes way for the waiting ``entry`` where all of ``most`` rows are taken, if any does."""
    return _victim(entry, running, ledger, most, lambda _: 1)


def for_memory(entry: Entry, running: Sequence[Entry], ledger: Ledger) -> Entry | None:
    """Who makes way for the waiting ``entry`` where memory is short, if any does.

    What a row holds is about in proportion to its length.
    """

    def holding(e: Entry) -> int:
        return len(e.tokens)

    total = sum(map(holding, running)) + holding(entry)
    return _victim(entry, running, ledger, total, holding)


def in_need(running: Sequence[Entry], ledger: Ledger) -> Entry:
    """Who makes way where running requests need more memory than there is.

    Batch before interactive ones, then of the tenant that holds most, by weight, the last to come.
    """
    batch = [e for e in running if e.request.priority == "batch"]
    found = batch or running
    if not batch and len(ledger.active) > 1:
        held = _held(running, lambda e: len(e.tokens))
        most = max(held, key=lambda a: held[a] / a.weight)
        found = [e for e in running if e.account is most]
    return _youngest(found)


def _victim(
    entry: Entry, running: Sequence[Entry], ledger: Ledger, total: int, holding: Holding
) -> Entry | None:
    """A batch request makes way for an interactive one; a tenant with more than its part for one
    with less, in the same class.

    A part is by weight, of the ``total`` of what is short. Who asks must have no more than its
    part afterwards, and takes from one that is left with more than its own, unless it has nothing
    yet: so nobody makes way for one who would have to give it back.
    """
    movable = [e for e in running if e.displaced < MOST_DISPLACED]
    batch = [e for e in movable if e.request.priority == "batch"]
    if entry.request.priority == "batch":
        movable = batch
    elif batch:
        return _youngest(batch)
    part = total / sum(account.weight for account in ledger.active)
    held = _held(running, holding)
    mine = held.get(entry.account, 0) + holding(entry)
    if mine > max(holding(entry), part * entry.account.weight):
        return None
    left = holding(entry) if entry.account in held else 0
    over = {a for a, n in held.items() if n - left > part * a.weight} - {entry.account}
    over &= {e.account for e in movable}
    if not over:
        return None
    most = max(over, key=lambda a: held[a] / a.weight)
    return _youngest([e for e in movable if e.account is most])


def _held(running: Sequence[Entry], holding: Holding) -> dict[Account, int]:
    """What each tenant holds."""
    held: dict[Account, int] = {}
    for entry in running:
        held[entry.account] = held.get(entry.account, 0) + holding(entry)
    return held


def _youngest(entries: Sequence[Entry]) -> Entry:
    return max(entries, key=lambda e: (e.admitted, e.accepted))
