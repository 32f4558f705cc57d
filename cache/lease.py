"""What the cache has for a prompt, and a row's hold on it.

Owned by the engine thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .block import Holder
from .loan import NOBODY, PUBLIC, Loan, Share
from .node import Node


class Hit(NamedTuple):
    """What the tree has for a prompt.

    ``length`` tokens can be reused, ``whole`` of them without cutting a block. ``kv_length``
    tokens match: more than ``length`` where a layer that cannot be cut has no snapshot that deep.
    """

    length: int
    whole: int
    kv_length: int
    snapshot: object | None


NO_HIT = Hit(0, 0, 0, None)


@dataclass(eq=False, slots=True)
class Lease:
    """A row's hold on the path to ``node``; released exactly once.

    ``tenant`` uses what it borrows and what it computes. ``holder`` is the row, once it has KV of
    its own in the tree.
    """

    node: Node
    tenant: str = NOBODY
    live: bool = True
    holder: Holder | None = None


def owed(path: Sequence[Node], tenant: str) -> Loan:
    """What ``tenant`` owes when it begins to use the nodes of ``path``.

    Public tokens have a lender, too, but cost nobody anything.
    """
    lenders: dict[str, int] = {}
    shares: list[Share] = []
    for node in path:
        lender = node.users[0] if node.users else PUBLIC
        lenders[lender] = lenders.get(lender, 0) + node.length
        if not node.users or tenant in node.users:
            continue
        tokens = node.length
        if shares and shares[-1].payers == node.users:
            tokens += shares.pop().tokens
        shares.append(Share(tokens, node.users))
    return Loan(lenders, tuple(shares))
