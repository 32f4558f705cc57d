"""What a scheduler must know of the other models on its engine thread."""

from __future__ import annotations

from typing import NamedTuple


class Neighbours(NamedTuple):
    """The other models at this moment.

    ``rows`` have been admitted there, and hold memory that will come back. ``seconds`` is what
    one decode step of each of them takes. ``first`` tells that one of them has waited so long
    for memory that nobody else may take any.
    """

    rows: int = 0
    seconds: float = 0.0
    first: bool = False


ALONE = Neighbours()
