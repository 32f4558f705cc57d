"""From the tokens of one reply to what a client sees: text, thought, tool calls, and its end.

Pure and synchronous, on the event loop. Knows no wire format.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mlx_lm.generate import TextStateMachine

from engine.tokenizer import Detokenizer, Tokenizer, tool_arguments

logger = logging.getLogger("commons.server")

TEXT, THOUGHT, CALL = "text", "thought", "call"
Ending = Literal["stop", "tool_calls"]


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

    @staticmethod
    def joined(deltas: Sequence[Delta]) -> Delta:
        """All of ``deltas`` as one."""
        if len(deltas) == 1:
            return deltas[0]
        text, thought = "".join([d.text for d in deltas]), "".join([d.thought for d in deltas])
        return Delta(text, thought, _joined_calls([call for d in deltas for call in d.calls]))


def _joined_calls(pieces: Sequence[CallDelta]) -> tuple[CallDelta, ...]:
    """Each call once, with all of its arguments that are there."""
    calls: list[CallDelta] = []
    for piece in pieces:
        if calls and calls[-1].number == piece.number:
            arguments = calls[-1].arguments + piece.arguments
            calls[-1] = calls[-1]._replace(arguments=arguments)
        else:
            calls.append(piece)
    return tuple(calls)


NOTHING = Delta()


class Output:
    """Parses one reply as it comes.

    ``tokenizer`` None means plain text: no thoughts, no calls, only ``stops``. Text that may
    yet turn out to be a stop string or a marker is held back until that is decided. ``ended``
    tells that a stop string, or a call where only one is wanted, has ended the reply.
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
    ) -> None:
        self.ended: Ending | None = None
        self._detokenizer = detokenizer
        self._tokenizer = tokenizer
        self._tools = tools
        self._one_call = one_call
        self._calls = 0
        self._call_text = ""
        self._last = THOUGHT if thinking else TEXT
        # The blank lines that templates put around a thought belong to neither side.
        self._trim = thinking
        edges = _transitions(tokenizer, stops, bool(tools))
        self._plain = not any(edges.values())
        self._state = TextStateMachine(edges).make_state(self._last)

    def add(self, token: int) -> Delta:
        """What ``token`` adds; after the reply's end nothing."""
        return self._feed(self._detokenizer.add(token))

    def finish(self) -> Delta:
        """What was held back when the tokens ended; an unfinished call becomes text."""
        delta = self._feed(self._detokenizer.finish())
        if self.over():
            return delta
        self._state, rest, state = TextStateMachine.flush(self._state)
        end = self._section(state, rest)
        if state == CALL:
            end = self._close_call()
        return Delta.joined([delta, end])

    def over(self) -> bool:
        """Whether the reply has ended before its tokens did."""
        return self.ended is not None

    @property
    def called(self) -> bool:
        """Whether the reply holds a tool call."""
        return self._calls > 0

    def _feed(self, text: str) -> Delta:
        if self.over() or not text:
            return NOTHING
        if self._plain:
            return Delta(text)
        self._state, segments = TextStateMachine.split(self._state, text)
        deltas = []
        for state, piece in segments:
            if state is None:
                self.ended = "stop"
                if self._last == CALL:  # a stop string inside a call leaves it unfinished
                    deltas.append(self._close_call())
                break
            deltas.append(self._section(state, piece))
            if self.over():
                break
        return Delta.joined(deltas)

    def _section(self, state: str, piece: str) -> Delta:
        before, self._last = self._last, state
        if state == CALL:
            self._call_text += piece
            return NOTHING
        closed = self._close_call() if before == CALL else NOTHING
        if self.over():
            return closed
        if before != state:
            self._trim = True
        if self._trim:
            piece = piece.lstrip("\n")
            self._trim = not piece
        shown = Delta(thought=piece) if state == THOUGHT else Delta(text=piece)
        return Delta.joined([closed, shown])

    def _close_call(self) -> Delta:
        """The calls in the text between two markers; the text itself where it holds none."""
        assert self._tokenizer is not None and self._tokenizer.tool_call is not None
        text, self._call_text = self._call_text, ""
        try:
            parsed = self._tokenizer.parse_tool_call(text, self._tools)
            read = [(_sound(c["name"]), _sound(tool_arguments(c["arguments"]))) for c in parsed]
        except (ValueError, TypeError, RecursionError):
            read = []
        if not read:
            logger.warning("a tool call of the model could not be read; it is passed on as text")
            return Delta(text=text)
        calls = []
        for name, arguments in read[: 1 if self._one_call else None]:
            calls.append(CallDelta(self._calls, f"call_{uuid.uuid4().hex[:24]}", name, arguments))
            self._calls += 1
        if self._one_call:
            self.ended = "tool_calls"
        return Delta(calls=tuple(calls))


def _sound(text: str) -> str:
    """``text`` less lone surrogates: a model may write one as an escape, but it has no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _transitions(
    tokenizer: Tokenizer | None, stops: Sequence[str], tools: bool
) -> dict[str, list[tuple[str, str | None]]]:
    """Which marker leads from which section to which; None is the end of the reply."""
    edges: dict[str, list[tuple[str, str | None]]] = {TEXT: [], THOUGHT: [], CALL: []}
    if tokenizer is not None and tokenizer.think is not None:
        start, end = tokenizer.think
        edges[TEXT].append((start, THOUGHT))
        edges[THOUGHT].append((end, TEXT))
    if tokenizer is not None and tokenizer.tool_call is not None and tools:
        start, end = tokenizer.tool_call
        edges[TEXT].append((start, CALL))
        edges[THOUGHT].append((start, CALL))
        if end:
            edges[CALL].append((end, TEXT))
    for section in edges.values():
        section.extend((stop, None) for stop in stops)
    return edges
