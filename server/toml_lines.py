"""In which line of a TOML document a table or a value begins, which ``tomllib`` does not tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

Place = tuple[str | int, ...]
"""Keys and, inside arrays, indices that lead to a value."""

TOKEN = re.compile(
    r"""(?P<string>\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
    r"""|(?P<comment>\#[^\n]*)|(?P<newline>\n)|(?P<mark>[\[\]{}=,.])|(?P<space>[ \t\r]+)"""
    r"""|(?P<bare>[^\s\[\]{}=,."'\#]+)""",
    re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def lines_of(text: str) -> dict[Place, int]:
    """The lines, from 1, of all tables, keys and array items of ``text``, which is valid TOML."""
    return _Reader(text).lines


def line_of(lines: dict[Place, int], place: Place) -> int:
    """The line of ``place``, or of the innermost thing around it that is written out."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return 1


class _Reader:
    """Walks through a document; what is inside a value is read for its keys alone."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self._arrays: dict[Place, int] = {}  # the last index of each array of tables
        self._tokens = list(_tokens(text))
        self._next = 0
        self._document()

    def _document(self) -> None:
        table: Place = ()
        while (token := self._significant()) is not None:
            if token.text == "[" and token.kind == "mark":
                table = self._header()
                self._note(table, token)
            else:
                self._pair(table)

    def _header(self) -> Place:
        """Reads ``[a.b]`` or ``[[a.b]]``; the table that it opens."""
        self._next += 1
        several = self._tokens[self._next].text == "["
        self._next += several
        keys = self._keys("]")
        self._next += several
        place: Place = ()
        for key in keys[:-1]:
            place = self._inside((*place, key))
        place = (*place, keys[-1])
        if several:
            self._arrays[place] = self._arrays.get(place, -1) + 1
        return self._inside(place)

    def _inside(self, place: Place) -> Place:
        """The last table of ``place``, if that is an array of them."""
        return (*place, self._arrays[place]) if place in self._arrays else place

    def _pair(self, table: Place) -> None:
        """Reads ``key = value``."""
        first = self._tokens[self._next]
        place = (*table, *self._keys("="))
        self._note(place, first)
        self._value(place)

    def _keys(self, end: str) -> list[str]:
        """Reads a dotted key and the ``end`` after it."""
        keys = []
        while (token := self._take()).text != end or token.kind != "mark":
            if token.kind == "string":
                keys.append(tomllib.loads(f"x = {token.text}")["x"])
            elif token.kind == "bare":
                keys.append(token.text)
        return keys

    def _value(self, place: Place) -> None:
        first = self._significant()
        if first is not None and first.kind == "mark" and first.text in "[{":
            self._next += 1
            self._collection(place, first.text)
            return
        while self._next < len(self._tokens):
            token = self._tokens[self._next]
            if token.kind == "newline" or (token.kind == "mark" and token.text in ",]}"):
                return
            self._next += 1

    def _collection(self, place: Place, opening: str) -> None:
        """Reads an array or an inline table behind its ``opening``."""
        index = 0
        while (token := self._significant()) is not None:
            if token.kind == "mark" and token.text in "]}":
                self._next += 1
                return
            if token.kind == "mark" and token.text == ",":
                self._next += 1
                index += 1
            elif opening == "{":
                self._pair(place)
            else:
                self._note((*place, index), token)
                self._value((*place, index))

    def _note(self, place: Place, token: _Token) -> None:
        # Of a.b = 1 and a.c = 2 the first is where the table a begins.
        for length in range(1, len(place) + 1):
            self.lines.setdefault(place[:length], token.line)

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _significant(self) -> _Token | None:
        """The next token that is no space, comment or end of line; it stays the next one."""
        while self._next < len(self._tokens):
            token = self._tokens[self._next]
            if token.kind not in ("space", "comment", "newline"):
                return token
            self._next += 1
        return None


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for found in TOKEN.finditer(text):
        assert found.lastgroup is not None
        yield _Token(found.lastgroup, found[0], line)
        line += found[0].count("\n")
