"""Public prompts: nodes that every domain's tree has, over blocks that one tree holds.

Owned by the engine thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .block import Block, Holder, PublicBlock
from .node import Node
from .radix import RadixTree


def copied(public: RadixTree, tree: RadixTree) -> Iterator[Node]:
    """Gives ``tree``, which is empty, the nodes and snapshots of ``public``; the leaves of these.

    They are everybody's and take no bytes.
    """
    copies = {public.root: tree.root}
    for node in public.walk():
        assert isinstance(node.payload, Block), "a row is still computing it"
        assert node.parent is not None
        payload = PublicBlock(node.payload, 0, node.length)
        copy = tree.insert(copies[node.parent], node.key, payload, None)
        if node.snapshot is not None:
            tree.set_snapshot(copy, node.snapshot, 0)
        copies[node] = copy
        if not node.children:
            yield copy


def rejoin(tree: RadixTree, path: Sequence[Node], holders: Sequence[Holder | None]) -> None:
    """Makes one node again of what a fork had cut out of a public block, when the fork is gone.

    A row whose tail begins at the cut needs it. ``holders`` are all rows, None for those that
    have not told yet where their tails begin.
    """
    for node in path:
        upper, lower = node.parent, node.payload
        if upper is None or not isinstance(lower, PublicBlock):
            continue
        above = upper.payload
        if not isinstance(above, PublicBlock) or above.base is not lower.base:
            continue
        at_cut = any(holder is None or holder.anchor == upper.end for holder in holders)
        if unforked(upper, node) and not at_cut:
            tree.merge(node, above.joined(lower))


def unforked(upper: Node, node: Node) -> bool:
    """Whether nothing but ``node`` begins, ends or is kept where its parent ``upper`` ends."""
    alone = len(upper.children) == 1 and upper.snapshot is None
    return alone and upper.loans == node.loans and upper.users == node.users
