"""Whether a reply is inside a thought, and when a thought has to end.

Pure; on the engine thread. Knows nothing of models or text.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Phase = Literal["opening", "inside", "outside"]


class Thoughts(NamedTuple):
    """How a model marks its thoughts, as token ids, and where a reply begins.

    It begins ``inside`` a thought, at a place where one may begin (``opening``), or ``outside``.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    begins: Phase


class Thinking(NamedTuple):
    """Where a reply is; ``after`` makes the next one.

    ``recent`` are its last tokens, as many as it takes to see a marker; ``left`` are the tokens
    that thoughts may still have, None: any number. ``forced`` is what has to come next.
    """

    thoughts: Thoughts
    phase: Phase
    left: int | None
    recent: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()

    @staticmethod
    def of(thoughts: Thoughts, budget: int | None) -> Thinking:
        """Before the first token."""
        begun = Thinking(thoughts, thoughts.begins, budget)
        return begun._bounded() if begun.phase == "inside" else begun

    def after(self, token: int) -> Thinking:
        """What it is when ``token`` has come."""
        marker = self.thoughts.end if self.phase == "inside" else self.thoughts.start
        recent = (*self.recent, token)[-len(marker) :]
        if recent == marker:
            return self._crossed()
        if self.phase != "inside":
            return self._replace(phase="outside", recent=recent)
        if self.forced:
            return self._replace(recent=recent, forced=self.forced[1:])
        left = None if self.left is None else max(0, self.left - 1)
        return self._replace(left=left, recent=recent)._bounded()

    def _crossed(self) -> Thinking:
        """On the other side of a marker."""
        if self.phase == "inside":
            return self._replace(phase="outside", recent=(), forced=())
        return self._replace(phase="inside", recent=())._bounded()

    def _bounded(self) -> Thinking:
        """With the end of the thought forced where it has had all of its tokens."""
        if self.left != 0:
            return self
        # The model may have begun the marker by itself.
        begun = next(
            n
            for n in range(len(self.thoughts.end) - 1, -1, -1)
            if self.recent[len(self.recent) - n :] == self.thoughts.end[:n]
        )
        return self._replace(forced=self.thoughts.end[begun:])
