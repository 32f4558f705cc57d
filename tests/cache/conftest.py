"""An empty radix tree, and one that forks."""

from __future__ import annotations

import pytest

from cache.node import Node
from cache.radix import RadixTree

from .trees import Held


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree()


@pytest.fixture
def forked(tree) -> tuple[RadixTree, Node, Node, Node]:
    """[1, 2, 3] with the continuations [4, 5] and [6]; the first is the older."""
    stem = tree.insert(tree.root, [1, 2, 3], Held(30))
    left = tree.insert(stem, [4, 5], Held(20))
    right = tree.insert(stem, [6], Held(10))
    return tree, stem, left, right
