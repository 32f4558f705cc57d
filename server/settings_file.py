"""The settings file: read whole, or refused with the line at fault. Knows no setting's meaning."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .toml_lines import Place, line_of, lines_of

POSITION = re.compile(r" \(at line (\d+), column \d+\)$")
AT_END = " (at end of document)"


class ConfigError(ValueError):
    """A configuration that cannot be used; one line that says where and why.

    ``place`` leads to what is at fault inside a settings file, where it is in one.
    """

    def __init__(self, message: str, place: Place = ()) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """What a file holds: options and tables by name; ``lines`` is for ``where``."""

    path: Path
    values: dict[str, Any]
    lines: dict[Place, int]

    def where(self, place: Place) -> str:
        """``FILE:LINE`` of what the keys in ``place`` lead to, as they are written."""
        return f"{self.path}:{line_of(self.lines, place)}"

    def where_is(self, option: str) -> str:
        """``FILE:LINE`` of an option, however its words are joined."""
        written = (p for p in self.lines if len(p) == 1 and _plain(str(p[0])) == option)
        return self.where(next(written, ()))

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Adds file and line to a ConfigError that knows its place."""
        try:
            yield
        except ConfigError as error:
            if not error.place:
                raise
            raise ConfigError(f"{self.where(error.place)}: {error}") from error


@contextmanager
def at(*place: str | int) -> Iterator[None]:
    """Gives a ConfigError that knows no place this one."""
    try:
        yield
    except ConfigError as error:
        if error.place:
            raise
        raise ConfigError(str(error), place) from error


def read_file(path: Path, known: Collection[str] | None = None) -> SettingsFile:
    """The settings of a TOML file, all of which must be ``known``. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8 text") from error
    text = text.replace("\r\n", "\n")
    try:
        values = tomllib.loads(text)
        lines = lines_of(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax(path, text, str(error))) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: this is nested too deeply") from error
    file = SettingsFile(path, values, lines)
    with file.blamed():
        settings = plain_keys(values)
        for written in values:
            if known is not None and _plain(written) not in known:
                there = ", ".join(known)
                raise ConfigError(f"{written!r} is not a setting; there are {there}", (written,))
    return SettingsFile(path, settings, lines)


def plain_keys(table: Mapping[str, Any], place: Place = ()) -> dict[str, Any]:
    """``table`` with the words of its keys joined by underscores.

    Raises ConfigError where that makes two keys one.
    """
    plain: dict[str, Any] = {}
    for key, value in table.items():
        if _plain(key) in plain:
            raise ConfigError(f"{key!r} is given twice", (*place, key))
        plain[_plain(key)] = value
    return plain


def _plain(key: str) -> str:
    return key.replace("-", "_")


def _syntax(path: Path, text: str, message: str) -> str:
    """The line for a file that is not TOML."""
    message = message.replace("Cannot overwrite a value", "this key is given twice")
    found = POSITION.search(message)
    if found:
        return f"{path}:{found[1]}: {message[: found.start()]}"
    last = text.rstrip("\n").count("\n") + 1
    return f"{path}:{last}: {message.removesuffix(AT_END)}"
