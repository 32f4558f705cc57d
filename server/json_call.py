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
        self._depth = 0
        self._over = False  # no object, or all of it has been seen
        self._in_string = False
        self._escaped = False
        self._string: list[str] = []  # of the outer object, as written: under way, or the last
        self._key = ""  # whose value is next or under way
        self._given = False  # whether arguments have begun
        self._in_arguments = False
        self._arguments: list[str] = []  # seen and not taken

    def add(self, text: str) -> None:
        """Goes on with ``text``."""
        begin = 0  # of what is part of the arguments, where the text is inside them
        for i, char in enumerate(text):
            if self._over:
                break
            inside = self._in_arguments
            self._step(char)
            if self._in_arguments and not inside:
                begin = i
            elif inside and not self._in_arguments:
                self._arguments.append(text[begin : i + 1])
        if self._in_arguments:
            self._arguments.append(text[begin:])

    def take(self) -> str:
        """The next piece of the arguments; "" while the name is not there.

        Arguments that are no object are not given in pieces.
        """
        if self.name is None:
            return ""
        piece = "".join(self._arguments)
        self._arguments.clear()
        return piece

    def _step(self, char: str) -> None:
        if self._in_string:
            self._inside(char)
        elif char == '"':
            self._in_string, self._string = True, ['"']
            self._over = not self._depth
        elif char in "{[":
            self._open(char)
        elif char in "}]":
            self._close()
        elif self._depth == 1 and char == ":":
            self._key = "".join(self._string)
        elif self._depth == 1 and char == ",":
            self._key = ""
        elif not self._depth and not char.isspace():
            self._over = True

    def _inside(self, char: str) -> None:
        if self._depth == 1:
            self._string.append(char)
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if self._depth == 1 and self._key == '"name"' and self.name is None:
                self._named()

    def _named(self) -> None:
        try:
            self.name = str(json.loads("".join(self._string)))
        except ValueError:
            self._over = True

    def _open(self, char: str) -> None:
        if not self._depth and char == "[":
            self._over = True
        if self._depth == 1 and char == "{" and self._key == '"arguments"' and not self._given:
            self._given = self._in_arguments = True
        self._depth += 1

    def _close(self) -> None:
        self._depth -= 1
        self._in_arguments = self._in_arguments and self._depth > 1
        self._over = self._depth <= 0
