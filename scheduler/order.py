"""Who goes first: classes of requests, prompts that are being computed, and those that follow one.

Engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence

from cache.tokens import common_length
from engine.rows import Row

from .entry import Entry

MOST_PASSED_OVER = 16  # times that something gives way to what came later
MOST_OUTRANKED = 64  # interactive requests that a batch one gives way to
WORTH_WAITING = 64  # tokens of common prefix for which a follower waits


def outranked(entry: Entry) -> bool:
    """Whether a batch request still gives way to interactive ones."""
    return entry.request.priority == "batch" and entry.outranked < MOST_OUTRANKED


def next_prefill(prefilling: Sequence[Entry]) -> Entry:
    """Whose chunk is next: of the tenant that is owed most, the shortest prompt.

    None of a tenant's prompts is passed over for ever.
    """
    first = min(prefilling, key=lambda e: (outranked(e), e.account.claim))
    rank = outranked(first), first.account
    group = [e for e in prefilling if (outranked(e), e.account) == rank]
    oldest = group[0]
    if oldest.passed_over >= MOST_PASSED_OVER:
        return oldest
    shortest = min(group, key=lambda e: e.row.remaining)  # type: ignore[union-attr]
    if shortest is not oldest:
        oldest.passed_over += 1
    return shortest


def leader(entry: Entry, cached: int, prefilling: Sequence[Entry]) -> tuple[Row, int] | None:
    """A row being prefilled that will soon have more of a waiting prompt, and up to where.

    ``cached`` tokens of the prompt are there already.
    """
    most = len(entry.tokens) - 1
    if most - cached < WORTH_WAITING:
        return None
    for other in prefilling:
        if other.request.namespace != entry.request.namespace:
            continue  # the same tokens may have other KV there, or must not be known
        assert other.row is not None
        common = common_length(other.tokens, entry.tokens, 0)
        common = min(common, most, len(other.tokens) - 1)
        if common - cached >= WORTH_WAITING and other.row.length < common:
            return other.row, common
    return None
