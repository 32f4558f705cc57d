"""What the tests of the radix tree ask of it."""

from __future__ import annotations

from dataclasses import dataclass

from cache.node import Node
from cache.radix import RadixTree


@dataclass(frozen=True, eq=False)
class Held:
    """A payload that is nothing but a size."""

    nbytes: int


def evictable(tree: RadixTree) -> Node | None:
    found = tree.shares.first()
    return None if found is None else found[0]


def leaves(tree: RadixTree) -> list[Node]:
    """Those that are not on loan, in the order in which they go."""
    found = [n for n in tree.walk() if not (n.children or n.loans)]
    found.sort(key=lambda n: n.last_used)
    assert evictable(tree) is (found[0] if found else None)
    return found


def totals(tree: RadixTree) -> tuple[int, int, int, int]:
    tree.check()
    return tree.nodes, tree.tokens, tree.nbytes, tree.snapshot_nbytes
