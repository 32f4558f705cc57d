"""What a check of ``commons doctor`` finds. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Status = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """One line of the report; ``fix`` is a command, or what else mends it."""

    status: Status
    message: str
    fix: str | None = None


Check = Callable[[], Finding]


class Named(NamedTuple):
    """A check and what it is called; it is given up after ``seconds``."""

    name: str
    check: Check
    seconds: float = 10.0


def ok(message: str) -> Finding:
    """All is well."""
    return Finding("ok", message)


def warning(message: str, fix: str | None = None) -> Finding:
    """The server will run, but not as well, or not as safely, as it could."""
    return Finding("warning", message, fix)


def problem(message: str, fix: str | None = None) -> Finding:
    """The server will not start, or not do what it is there for."""
    return Finding("problem", message, fix)


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
