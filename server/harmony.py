"""The harmony format of gpt-oss: messages with headers, in channels.

A reply is a run of messages, ``HEADER<|message|>TEXT<|end|>``, divided by ``<|start|>``. The
header names a channel, and the function that a call is for. What the prompt already holds of
the first header is not part of the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .sections import CALL, END, GAP, TEXT, THOUGHT, Edges, Kind, Matcher, Segment

FIRST, BODY, BETWEEN, OVER = "first", "body", "between", "over"
CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
FINISHED, CALLED, RETURNED = "<|end|>", "<|call|>", "<|return|>"
RECIPIENT = " to="  # a first header may begin with it
# By which marker a header was entered tells what it begins with.
HEADERS = {"started": "", "channelled": CHANNEL, "addressed": RECIPIENT}
STARTED, CHANNELLED, ADDRESSED = HEADERS
MOST_HEADER = 512  # characters; what is longer is no header

TO = re.compile(r"\bto=([^\s<]+)")
NAMED = re.compile(re.escape(CHANNEL) + r"\s*([a-z]+)")
FUNCTIONS = "functions."


def _edges() -> Edges:
    ends = [(CALLED, OVER), (RETURNED, OVER)]
    into = [(START, STARTED), (CHANNEL, CHANNELLED), (MESSAGE, BODY)]
    header = [(MESSAGE, BODY), (FINISHED, BETWEEN), *ends]
    return {
        FIRST: [*into, (RECIPIENT, ADDRESSED), (FINISHED, BETWEEN), *ends],
        **{state: list(header) for state in HEADERS},
        BODY: [*into, (FINISHED, BETWEEN), *ends],
        BETWEEN: [*into, *ends],
        OVER: [],
    }


class HarmonySections:
    """What is in which channel: analysis is thought, the rest is shown or called.

    A reply that begins without a header is text, as the rest of one that the prompt begins is.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._matcher = Matcher(_edges(), FIRST)
        self._tools = {str(tool["function"]["name"]) for tool in tools}
        self._header = ""
        self._no_header = False
        self._kind: Kind = TEXT
        self._before = FIRST

    @property
    def kind(self) -> Kind:
        return self._kind if self._matcher.state in (FIRST, BODY) else GAP

    def split(self, text: str) -> list[Segment]:
        return [s for state, piece in self._matcher.split(text) for s in self._in(state, piece)]

    def flush(self) -> list[Segment]:
        state = self._matcher.state
        segments = self._in(state, self._matcher.flush())
        if state == ADDRESSED and not self._no_header and CHANNEL not in self._header:
            segments.append(Segment(TEXT, self._header))  # not a header at all
        return segments

    def _in(self, state: str, text: str) -> list[Segment]:
        before, self._before = self._before, state
        if state in HEADERS:
            if before not in HEADERS:
                self._header, self._no_header = HEADERS[state], False
            return self._in_header(text)
        if state == BODY and before != BODY:
            return self._opened(text)
        if state in (FIRST, BODY):
            return [Segment(self._kind, text)]
        if state == BETWEEN:
            return [Segment(GAP)]
        return [Segment(END)]

    def _in_header(self, text: str) -> list[Segment]:
        if self._no_header:
            return [Segment(TEXT, text)]
        self._header += text
        if len(self._header) <= MOST_HEADER:
            return [Segment(GAP)]
        self._no_header = True
        return [Segment(TEXT, self._header)]

    def _opened(self, text: str) -> list[Segment]:
        """The first piece of a message, whose header tells what it is."""
        header = "" if self._no_header else self._header.rpartition(START)[2]
        self._header = ""
        name = self._called(header)
        channel = NAMED.search(header)
        if name:
            self._kind = CALL
        else:
            self._kind = THOUGHT if channel and channel[1] == "analysis" else TEXT
        return [Segment(self._kind, text, name)]

    def _called(self, header: str) -> str:
        """The function that a message calls; "" where it calls none that was offered."""
        to = TO.search(header)
        if to is None or not self._tools:
            return ""
        name = to[1].removeprefix(FUNCTIONS)
        return name if name != to[1] or name in self._tools else ""
