"""From the tokens of one reply to what a client sees: text, thought, tool calls, and its end.

Pure and synchronous, on the event loop. Knows no wire format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from engine.tokenizer import Detokenizer, Tokenizer

from .calls import Calls
from .delta import NOTHING, CallDelta, Delta
from .harmony import HarmonySections
from .sections import CALL, END, GAP, TEXT, THOUGHT, Kind, Sections, Segment, Stopped, marked

__all__ = ["NOTHING", "CallDelta", "Delta", "Ending", "Output"]

Ending = Literal["stop", "tool_calls"]


class Output:
    """Parses one reply as it comes.

    ``tokenizer`` None means plain text: no thoughts, no calls, only ``stops``, which are
    not looked for in thoughts and calls. Text that may yet turn out to be a stop string or a marker
    is held back until that is decided. With
    ``incremental`` calls come in pieces as they are written; without, only whole ones. A
    ``formed`` reply is all answer from where an answer begins: a grammar sees to that.

    ``ended`` tells that a stop string, which is ``stop`` then, an end marker, or a call where
    only one is wanted, has ended the reply. ``reasoning`` counts the tokens inside thoughts.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
        *,
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        one_call: bool = False,
        incremental: bool = False,
        formed: bool = False,
    ) -> None:
        self.ended: Ending | None = None
        self.stop: str | None = None
        self.reasoning = 0
        self._detokenizer = detokenizer
        self._sections = _sections(tokenizer, stops, tools, thinking, formed)
        self._calls = None
        if tokenizer is not None:
            self._calls = Calls(tokenizer, tools, one=one_call, incremental=incremental)
        self._last: Kind = TEXT if self._sections is None else self._sections.kind
        # The blank lines that templates put around a thought belong to neither side.
        self._trim = self._last == THOUGHT

    def add(self, token: int) -> Delta:
        """What ``token`` adds; after the reply's end nothing."""
        thinking = self.thinking
        delta = self._feed(self._detokenizer.add(token))
        if thinking and self.thinking:
            self.reasoning += 1
        return delta

    def finish(self) -> Delta:
        """What was held back when the tokens ended; an unfinished call becomes text."""
        delta = self._feed(self._detokenizer.finish())
        if self.over() or self._sections is None:
            return delta
        return Delta.joined([delta, self._taken(self._sections.flush()), self._closed()])

    def over(self) -> bool:
        """Whether the reply has ended before its tokens did."""
        return self.ended is not None

    @property
    def thinking(self) -> bool:
        """Whether the reply is in a thought."""
        return self._sections is not None and self._sections.kind == THOUGHT and not self.over()

    @property
    def called(self) -> bool:
        """Whether the reply holds tool calls, all of which are whole."""
        return self._calls is not None and self._calls.count > 0 and not self._calls.broken

    def _feed(self, text: str) -> Delta:
        if self.over() or not text:
            return NOTHING
        if self._sections is None:
            return Delta(text)
        return self._taken(self._sections.split(text))

    def _taken(self, segments: Sequence[Segment]) -> Delta:
        deltas = []
        for segment in segments:
            deltas.append(self._section(segment))
            if self.over():
                break
        return Delta.joined(deltas)

    def _section(self, segment: Segment) -> Delta:
        kind, before = segment.kind, self._last
        self._last = kind
        closed = self._closed() if kind != CALL or segment.name else NOTHING
        if self.over():
            return closed
        if kind == END:
            self.ended, self.stop = "stop", segment.stop
            return closed
        if kind == GAP:
            return closed
        if kind == CALL:
            return Delta.joined([closed, self._called(segment)])
        if before != kind:
            self._trim = True
        return Delta.joined([closed, self._shown(kind, segment.text)])

    def _called(self, segment: Segment) -> Delta:
        assert self._calls is not None
        begun = NOTHING
        if not self._calls.is_open:
            begun = self._calls.begin(segment.name)
        return Delta.joined([begun, self._calls.add(segment.text)])

    def _closed(self) -> Delta:
        """The open call's end, if there is one."""
        if self._calls is None or not self._calls.is_open:
            return NOTHING
        delta = self._calls.close()
        if self._calls.enough:
            self.ended = "tool_calls"
        return delta

    def _shown(self, kind: Kind, text: str) -> Delta:
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        return Delta(thought=text) if kind == THOUGHT else Delta(text=text)


def _sections(
    tokenizer: Tokenizer | None,
    stops: Sequence[str],
    tools: Sequence[Mapping[str, Any]],
    thinking: bool,
    formed: bool,
) -> Sections | None:
    """The format of a reply; None for text without an end of its own."""
    if tokenizer is not None and tokenizer.harmony:
        sections = HarmonySections(tools)
        return Stopped(sections, stops) if stops else sections
    return marked(tokenizer, stops, tools, thinking=thinking, formed=formed)
