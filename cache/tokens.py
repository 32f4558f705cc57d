"""Token sequences as arrays of 32-bit integers, so that comparing them runs in C."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def as_array(tokens: Sequence[int]) -> array[int]:
    """``tokens`` itself if it is an ``array('i')``, else a copy as one, in O(n).

    Raises OverflowError for a token that does not fit 32 bits, TypeError for one that is no int.
    """
    if isinstance(tokens, array) and tokens.typecode == "i":
        return tokens
    return array("i", tokens)


def common_length(key: array[int], tokens: array[int], pos: int) -> int:
    """How many tokens ``key`` and ``tokens[pos:]`` have in common at their beginning.

    Compares slices, which runs in C: whole first, then doubling ones, then halving ones around
    the first difference. O(length of the shorter of the two).
    """
    size = min(len(key), len(tokens) - pos)
    if key[:size] == tokens[pos : pos + size]:
        return size
    low, high = 0, min(32, size)
    while key[low:high] == tokens[pos + low : pos + high]:
        low, high = high, min(2 * high, size)
    while high - low > 1:  # the first difference is in [low, high)
        mid = (low + high) // 2
        if key[low:mid] == tokens[pos + low : pos + mid]:
            low = mid
        else:
            high = mid
    return low
