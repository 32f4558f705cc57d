"""Drafts without a model: a text that repeats itself goes on as it did before.

Prompt lookup decoding (Saxena, 2023): agents repeat code, file names and tool results. Pure
functions, on any thread.
"""

from __future__ import annotations

from array import array

LONGEST, SHORTEST = 4, 2  # tokens at the end that must have stood somewhere before


def lookup(tokens: array[int], most: int) -> list[int]:
    """Up to ``most`` tokens that followed the latest earlier place that ends like ``tokens``."""
    for count in range(LONGEST, SHORTEST - 1, -1):
        if len(tokens) > count and most > 0:
            after = _after(tokens, count)
            if after is not None:
                return _continued(tokens, after, most)
    return []


def _after(tokens: array[int], count: int) -> int | None:
    """The index behind the latest earlier occurrence of the last ``count`` tokens."""
    size = tokens.itemsize
    data = tokens.tobytes()  # searched in C: microseconds, where an index would take megabytes
    pattern = data[-count * size :]
    end = len(data) - size  # the end itself is no earlier occurrence
    while (at := data.rfind(pattern, 0, end)) >= 0:
        if at % size == 0:
            return at // size + count
        end = at + len(pattern) - 1
    return None


def _continued(tokens: array[int], start: int, most: int) -> list[int]:
    """What follows ``start``; where that reaches the end, the period between them goes on."""
    found = tokens[start : start + most].tolist()
    period = len(tokens) - start
    while len(found) < most:
        found.append(found[len(found) - period])
    return found
