"""When Python looks for cycles of garbage: seldom, for it stops every thread meanwhile."""

from __future__ import annotations

import gc

# A large body is a million objects at once. By default that is a thousand searches, which take
# ten times as long as reading it; what is no cycle is freed without them.
THRESHOLDS = (50_000, 20, 20)


def collect_seldom() -> None:
    """To be called once all is imported and before a model is loaded.

    What is there now stays, so no search needs to look at it; models may leave.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
