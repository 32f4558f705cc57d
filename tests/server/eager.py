"""``commons`` that proposes tokens whether that pays or not."""

from __future__ import annotations

from collections.abc import Sequence

from engine import speculation
from engine.drafting import Candidate, Curve
from server import cli


def choose(
    verify: Curve,
    propose: Curve | None,
    rows: int,
    attended: float,
    candidates: Sequence[Candidate],
) -> list[int]:
    return [candidate.most for candidate in candidates]


if __name__ == "__main__":
    speculation.choose = choose
    cli.main()
