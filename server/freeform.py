"""Grammars of freeform tools as regular expressions.

The input of such a tool stands inside a JSON string, where a grammar's terminals would have to be
read through the string's escapes. The grammar compiler can do that for one expression, not for
rules over terminals; so rules are put into each other, which works as long as none comes back to
itself. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from .structured import MOST_REGEX

TOKEN = re.compile(
    r"""(?P<blank>[ \t\f\r]+|//[^\n]*)
      | (?P<newline>\n\s*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"i?)
      | (?P<regexp>/(?:[^/\\\n]|\\.)+/[imsux]*)
      | (?P<import>%import\b[^\n]*)
      | (?P<count>~[ \t]*\d+(?:[ \t]*\.\.[ \t]*\d+)?|\{\d+(?:,\d*)?\})
      | (?P<alias>->[ \t]*\w+)
      | (?P<name>[!?]?_?[A-Za-z]\w*)
      | (?P<priority>\.-?\d+)
      | (?P<mark>[()\[\]|:?*+])
    """,
    re.VERBOSE,
)
IMPORT = re.compile(r"%import\s+common\s*(?:\.\s*(\w+)|\(([\w\s,]+)\))\s*(?://.*)?")
META = re.compile(r"[\\.+*?()|\[\]{}^$]")
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))")
ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\", '"': '"', "'": "'"}
_INT, _FLOAT = "[0-9]+", r"[0-9]+(?:[eE][+-]?[0-9]+|\.[0-9]*(?:[eE][+-]?[0-9]+)?)|\.[0-9]+"
COMMON = {
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "CR": r"\r",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "DIGIT": "[0-9]",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
    "FLOAT": _FLOAT,
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": _INT,
    "LCASE_LETTER": "[a-z]",
    "LETTER": "[A-Za-z]",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "NUMBER": f"{_FLOAT}|{_INT}",
    "SIGNED_FLOAT": f"[+-]?(?:{_FLOAT})",
    "SIGNED_INT": f"[+-]?{_INT}",
    "SIGNED_NUMBER": f"[+-]?(?:{_FLOAT}|{_INT})",
    "UCASE_LETTER": "[A-Z]",
    "WORD": "[A-Za-z]+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
}  # what lark's own library calls so


class Format(msgspec.Struct, frozen=True):
    """The grammar of a tool's input; ``syntax`` is lark or regex."""

    syntax: str
    definition: str


class Token(NamedTuple):
    """A piece of a grammar's text."""

    kind: str
    text: str


BAR = Token("mark", "|")


class _Beyond(ValueError):
    """The grammar has something that no expression, or none made here, can say."""


def input_pattern(format: Format) -> str | None:
    """An anchored expression for the texts of a grammar; None where there is none."""
    if format.syntax == "regex":
        inner = format.definition.removeprefix("^")
        if inner.endswith("$") and not inner.endswith("\\$"):
            inner = inner[:-1]
        return f"^(?:{inner})$"
    try:
        return f"^{_Rules(format.definition).pattern('start')}$"
    except (_Beyond, RecursionError):
        return None


class _Rules:
    """The definitions of a Lark grammar, put into each other as far as they are asked for."""

    def __init__(self, definition: str) -> None:
        self._bodies: dict[str, list[Token]] = {}
        self._made: dict[str, str] = {}
        self._open: set[str] = set()
        line: list[Token] = []
        ended = False
        for token in _tokens(definition):
            if token.kind == "newline":
                ended = True
                continue
            if ended and line and token != BAR:  # which goes on with the line before
                self._define(line)
                line = []
            ended = False
            line.append(token)
        if line:
            self._define(line)

    def pattern(self, name: str) -> str:
        """The expression for a definition. Raises _Beyond."""
        if name not in self._made:
            if name in self._open or name not in self._bodies:
                raise _Beyond(name)
            self._open.add(name)
            body = _Body(self._bodies[name], self)
            self._made[name] = _short(f"(?:{body.whole()})")
        return self._made[name]

    def _define(self, line: list[Token]) -> None:
        first, *rest = line
        if first.kind == "import" and not rest:
            self._import(first.text)
            return
        if rest and rest[0].kind == "priority":
            rest = rest[1:]
        if first.kind != "name" or not rest or rest[0] != Token("mark", ":"):
            raise _Beyond(first.text)
        self._bodies[_plain(first.text)] = rest[1:]

    def _import(self, text: str) -> None:
        found = IMPORT.fullmatch(text)
        if found is None:
            raise _Beyond(text)
        for name in (found[1] or found[2]).replace(",", " ").split():
            if name not in COMMON:
                raise _Beyond(name)
            self._made[name] = f"(?:{COMMON[name]})"


class _Body:
    """One definition's right side, read from left to right."""

    def __init__(self, tokens: list[Token], rules: _Rules) -> None:
        self._tokens = tokens
        self._rules = rules
        self._at = 0

    def whole(self) -> str:
        """All of it. Raises _Beyond."""
        made = self._alternatives()
        if self._at < len(self._tokens):
            raise _Beyond(self._tokens[self._at].text)
        return made

    def _alternatives(self) -> str:
        made = self._sequence()
        while self._takes("|"):
            made = _short(f"{made}|{self._sequence()}")
        return made

    def _sequence(self) -> str:
        made = ""
        while (atom := self._atom()) is not None:
            made = _short(made + atom + self._repeat())
        if self._peek().kind == "alias":
            self._at += 1
        return made

    def _atom(self) -> str | None:
        kind, text = self._peek()
        if text in ("(", "[") and kind == "mark":
            self._at += 1
            inner = self._alternatives()
            if not self._takes(")" if text == "(" else "]"):
                raise _Beyond(text)
            return f"(?:{inner})" if text == "(" else f"(?:(?:{inner})?)"
        if kind not in ("string", "regexp", "name"):
            return None
        self._at += 1
        if kind == "name":
            return self._rules.pattern(_plain(text))
        return _literal(text) if kind == "string" else _expression(text)

    def _repeat(self) -> str:
        kind, text = self._peek()
        if kind == "count":
            self._at += 1
            return text if text[0] == "{" else _count(text)
        if text in ("?", "*", "+") and kind == "mark":
            self._at += 1
            return text
        return ""

    def _peek(self) -> Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else Token("end", "")

    def _takes(self, mark: str) -> bool:
        taken = self._peek() == Token("mark", mark)
        self._at += taken
        return taken


def _tokens(definition: str) -> Iterator[Token]:
    at = 0
    while at < len(definition):
        found = TOKEN.match(definition, at)
        if found is None:
            raise _Beyond(definition[at : at + 20])
        at = found.end()
        if found.lastgroup not in (None, "blank"):
            yield Token(str(found.lastgroup), found[0])


def _plain(name: str) -> str:
    """A name without the marks that only shape lark's trees."""
    return name.lstrip("!?")


def _short(pattern: str) -> str:
    if len(pattern) > MOST_REGEX:
        raise _Beyond("too long")
    return pattern


def _literal(text: str) -> str:
    inner = text.removesuffix("i")[1:-1]
    escaped = META.sub(r"\\\g<0>", ESCAPE.sub(_unescaped, inner))
    return f"(?i:{escaped})" if text.endswith("i") else f"(?:{escaped})"


def _unescaped(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    if code:
        return chr(int(code, 16))
    if found[3] not in ESCAPED:
        raise _Beyond(found[0])
    return ESCAPED[found[3]]


def _expression(text: str) -> str:
    body, _, flags = text[1:].rpartition("/")
    return f"(?{flags}:{body})"


def _count(text: str) -> str:
    """``~ 2..5`` as an expression has it."""
    return "{" + ",".join(re.findall(r"\d+", text)) + "}"


def bound(function: Mapping[str, Any], formats: Mapping[str, Format]) -> Mapping[str, Any]:
    """A function, its one text bound to the grammar of the freeform tool that it stands for."""
    format = formats.get(str(function["name"]))
    pattern = None if format is None else input_pattern(format)
    if pattern is None:
        return function
    schema = function["parameters"]
    text = {"type": "string", "pattern": pattern}
    return {**function, "parameters": schema | {"properties": {"input": text}}}
