"""The tool calls of one reply: whole, or in pieces while they are being written."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from engine.tokenizer import Tokenizer, tool_arguments

from .call_shapes import is_safe
from .delta import NOTHING, CallDelta, Delta
from .json_call import JsonCall

logger = logging.getLogger("commons.server")

MOST_CALL = 1 << 20  # characters of a call in JSON
# In other formats, whose parsers search a text in slow steps while streams wait.
MOST_SEARCHED = 1 << 17

# What may be a function's name though none of that name is offered; some parsers take any text.
NAME = re.compile(r"[^\s<>{}()\[\]\"']{1,128}")

Read = tuple[str, str]  # name and arguments of a call


class Calls:
    """Reads one call after the other; between ``begin`` and ``close`` a call is open.

    With ``incremental`` a call is sent as it comes, where its format lets its name be known in
    time, and one that turns out to be malformed stays as far as it was sent. Else, and as long
    as nothing of it was sent, what cannot be read comes out as text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]],
        *,
        one: bool,
        incremental: bool,
    ) -> None:
        self.count = 0
        self.broken = False  # one that was sent in part will never be whole
        self.is_open = False
        self._tokenizer = tokenizer
        self._tools = tools
        self._offered = {tool["function"]["name"] for tool in tools}
        self._one = one
        self._incremental = incremental
        self._name = ""
        self._text: list[str] = []
        self._size = 0
        self._too_long = False
        self._scan = JsonCall()
        self._sent = False
        self._arguments = False  # whether any were sent

    @property
    def enough(self) -> bool:
        """Whether the reply is to end here."""
        return self._one and self.count > 0 and not self.is_open

    def begin(self, name: str = "") -> Delta:
        """Opens a call, whose ``name`` is given where it stands outside its text."""
        self._reset(name)
        self.is_open = True
        return self._first(name) if name and self._incremental else NOTHING

    def add(self, text: str) -> Delta:
        """Goes on with the open call."""
        if self._too_long:
            return NOTHING if self._sent else Delta(text=text)
        self._text.append(text)
        self._size += len(text)
        in_json = self._name or self._tokenizer.json_calls
        if self._size > (MOST_CALL if in_json else MOST_SEARCHED):
            self._too_long = True
            return self._unreadable("is too long")
        if not self._incremental:
            return NOTHING
        if self._name:
            return self._more(text)
        return self._scanned(text) if self._tokenizer.json_calls else NOTHING

    def close(self) -> Delta:
        """Ends the open call."""
        self.is_open = False
        if self._too_long:
            return NOTHING
        read = self._read("".join(self._text))
        if self._sent:
            return self._checked(read)
        if not read:
            return self._unreadable("could not be read")
        calls = []
        for name, arguments in read[: 1 if self._one else None]:
            calls.append(CallDelta(self.count, _new_id(), name, arguments))
            self.count += 1
        return Delta(calls=tuple(calls))

    def _reset(self, name: str) -> None:
        self._name = name
        self._text = []
        self._size = 0
        self._too_long = False
        self._scan = JsonCall()
        self._sent = False
        self._arguments = False

    def _scanned(self, text: str) -> Delta:
        self._scan.add(text)
        if self._scan.name is None or not self._possible(self._scan.name):
            return NOTHING
        first = NOTHING if self._sent else self._first(self._scan.name)
        return Delta.joined([first, self._more(self._scan.take())])

    def _first(self, name: str) -> Delta:
        self._sent = True
        self.count += 1
        return Delta(calls=(CallDelta(self.count - 1, _new_id(), sound(name), ""),))

    def _more(self, arguments: str) -> Delta:
        if not arguments:
            return NOTHING
        self._arguments = True
        return Delta(calls=(CallDelta(self.count - 1, "", "", arguments),))

    def _read(self, text: str) -> list[Read]:
        """The calls in ``text``; none where it cannot be read."""
        try:
            if not (self._name or is_safe(self._tokenizer.tool_format, text)):
                return []
            if self._name:
                arguments = text if text.strip() else "{}"
                named = isinstance(json.loads(arguments), dict)
                return [(sound(self._name), sound(arguments))] if named else []
            parsed = self._tokenizer.parse_tool_call(text, self._tools)
            read = [(sound(c["name"]), sound(tool_arguments(c["arguments"]))) for c in parsed]
        except (ValueError, TypeError, RecursionError):
            return []
        return read if all(self._possible(name) for name, _ in read) else []

    def _possible(self, name: str) -> bool:
        return name in self._offered or NAME.fullmatch(name) is not None

    def _checked(self, read: list[Read]) -> Delta:
        """Closes a call that was sent in pieces: what it lacks, where that can still be said."""
        if len(read) != 1:
            return self._unreadable("could not be read")
        if self._arguments:
            return NOTHING
        # No arguments at all, or such as do not come in pieces.
        return self._more(read[0][1])

    def _unreadable(self, why: str) -> Delta:
        if self._sent:
            logger.warning("a tool call of the model %s; it ends where it was sent so far", why)
            self.broken = True
            return NOTHING
        logger.warning("a tool call of the model %s; it is passed on as text", why)
        return Delta(text="".join(self._text))


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def sound(text: str) -> str:
    """``text`` less lone surrogates: a model may write one as an escape, but it has no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
