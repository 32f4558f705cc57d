"""What a reply grew by, as every dialect gets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class CallDelta(NamedTuple):
    """What was added to the ``number``-th call of a reply, counted from 0.

    The first delta of a call brings its ``id`` and ``name``; in later ones they are empty.
    ``arguments`` is the next piece of its JSON text.
    """

    number: int
    id: str
    name: str
    arguments: str


class Delta(NamedTuple):
    """What a token, or several, added to a reply."""

    text: str = ""
    thought: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.thought or self.calls)

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Which of text, thought and calls there are."""
        return bool(self.text), bool(self.thought), bool(self.calls)

    @staticmethod
    def joined(deltas: Sequence[Delta]) -> Delta:
        """All of ``deltas`` as one."""
        if len(deltas) == 1:
            return deltas[0]
        text, thought = "".join([d.text for d in deltas]), "".join([d.thought for d in deltas])
        return Delta(text, thought, _joined_calls([call for d in deltas for call in d.calls]))


def _joined_calls(pieces: Sequence[CallDelta]) -> tuple[CallDelta, ...]:
    """Each call once, with all of its arguments that are there."""
    joined: list[CallDelta] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if joined and joined[-1].number == piece.number:
            arguments[-1].append(piece.arguments)
        else:
            joined.append(piece)
            arguments.append([piece.arguments])
    return tuple(
        call._replace(arguments="".join(parts))
        for call, parts in zip(joined, arguments, strict=True)
    )


NOTHING = Delta()
