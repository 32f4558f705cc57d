"""What a borrower had better keep itself than borrow. Pure functions of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .block import Block
from .node import Node


@dataclass(frozen=True, slots=True)
class Keeping:
    """Whether a borrowed, otherwise unused block moves into the borrower's tail.

    Every lent node costs operations per layer and step, a move costs one copy. A block of
    ``most`` tokens or fewer is moved; one with more than ``forks`` continuations is wanted by
    others and stays.
    """

    most: int = 1024
    forks: int = 2
    scrap: int = 64  # tokens; a shorter piece at the end is copied even while others borrow it


def adoptable(path: Sequence[Node], keeping: Keeping) -> int:
    """How many nodes at the end of ``path`` are better kept by the borrower itself."""
    total = count = 0
    for node in reversed(path):
        total += node.length
        if not isinstance(node.payload, Block) or total > keeping.most:
            break
        private = node.loans == 1 and len(node.children) <= keeping.forks
        scrap = total <= keeping.scrap
        if not (private or scrap):
            break
        count += 1
    return count
