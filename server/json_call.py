"""Finds name and arguments in the JSON object of a tool call while it is being written.

It follows strings and brackets and checks nothing else: whether a whole call is sound is for
the model's parser to say.
"""

from __future__ import annotations

import json


class JsonCall:
    """One call, ``{"name": ..., "arguments": {...}}``, its keys in any order.

    ``name`` is None until it is there. What is no such object never gets one.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._text = ""
        self._depth = 0
        self._over = False  # no object, or all of it has been seen
        self._quote: int | None = None  # where the string begins that the text is in
        self._escaped = False
        self._string = ""  # the last whole string of the outer object, as written
        self._key = ""  # whose value is next or under way
        self._begin: int | None = None
        self._end: int | None = None
        self._taken = 0

    def add(self, text: str) -> None:
        """Goes on with ``text``."""
        at = len(self._text)
        self._text += text
        for i in range(at, len(self._text)):
            if self._over:
                return
            self._step(i, self._text[i])

    def take(self) -> str:
        """The next piece of the arguments; "" while the name is not there.

        Arguments that are no object are not given in pieces.
        """
        if self.name is None or self._begin is None:
            return ""
        end = len(self._text) if self._end is None else self._end
        start = max(self._begin, self._taken)
        self._taken = end
        return self._text[start:end]

    def _step(self, i: int, char: str) -> None:
        if self._quote is not None:
            self._in_string(i, char)
        elif char == '"':
            if not self._depth:
                self._over = True
            self._quote = i
        elif char in "{[":
            self._open(i, char)
        elif char in "}]":
            self._close(i)
        elif self._depth == 1 and char == ":":
            self._key = self._string
        elif self._depth == 1 and char == ",":
            self._key = ""
        elif not self._depth and not char.isspace():
            self._over = True

    def _in_string(self, i: int, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            assert self._quote is not None
            if self._depth == 1:
                self._ended(self._text[self._quote : i + 1])
            self._quote = None

    def _ended(self, string: str) -> None:
        """A string of the outer object has ended: a key, or the value of one."""
        if not self._key:
            self._string = string
        elif self._key == '"name"' and self.name is None:
            try:
                self.name = str(json.loads(string))
            except ValueError:
                self._over = True

    def _open(self, i: int, char: str) -> None:
        if not self._depth and char == "[":
            self._over = True
        if self._depth == 1 and self._key == '"arguments"' and char == "{" and self._begin is None:
            self._begin = i
        self._depth += 1

    def _close(self, i: int) -> None:
        self._depth -= 1
        if self._depth == 1 and self._begin is not None and self._end is None:
            self._end = i + 1
        self._over = self._depth <= 0
