"""How log lines look: for people, or one JSON object each; no text of a client's breaks a line."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, TextIO

from .request_log import request_id

# Control characters, and what else viewers take for a line's end or let run backwards.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
INDENT = "\n    "


def configure(level: str, file: Path | None = None, *, as_json: bool = False) -> None:
    """Has everything logged to standard error or a file, what is ours from ``level`` on.

    The file is made anew where somebody renames it. Raises OSError.
    """
    handler: logging.Handler = _StderrHandler()
    if file is not None:
        handler = WatchedFileHandler(file, encoding="utf-8")
    handler.setFormatter(JsonFormatter() if as_json else HumanFormatter())
    handler.addFilter(_named)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("commons").setLevel(level.upper())


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at the time: above a moving sign, not into its line."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass  # the base class sets it once


def _named(record: logging.LogRecord) -> bool:
    """Notes on a line which request it came of; on the thread that logs it."""
    if not hasattr(record, "request_id"):
        record.request_id = request_id()
    return True


def escaped(text: str) -> str:
    """``text`` on one line, whatever is in it."""
    return UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class HumanFormatter(logging.Formatter):
    """Time, level, logger, message and the request's name; further lines are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        line = super().formatMessage(record)
        name = getattr(record, "request_id", None)
        return f"{line} [{escaped(name)}]" if name else line

    def formatException(self, ei: Any) -> str:
        trace = super().formatException(ei).splitlines()
        return "    " + INDENT.join(map(escaped, trace))


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if name := getattr(record, "request_id", None):
            line["request_id"] = name
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # in ASCII, so that no viewer finds more in it
