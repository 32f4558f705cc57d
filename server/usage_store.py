"""Keeps tenants' usage across restarts, in an SQLite file to which increments are added.

To be called on worker threads. Trouble with the file stops nobody: what could not be written is
kept in memory and tried again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from scheduler.usage import SUMS, Counts, Key, Usage

logger = logging.getLogger("commons.usage")

VERSION = 1  # of the tables
BUSY = 2.0  # seconds to wait for another process that writes
EPOCH = date(1970, 1, 1).toordinal()

TABLES = f"""
CREATE TABLE usage (
    day TEXT, tenant TEXT, model TEXT, {", ".join(f"{name} NUMERIC NOT NULL" for name in SUMS)},
    PRIMARY KEY (day, tenant, model)) WITHOUT ROWID;
CREATE TABLE lending (
    day TEXT, lender TEXT, borrower TEXT, model TEXT, tokens INTEGER NOT NULL,
    PRIMARY KEY (day, lender, borrower, model)) WITHOUT ROWID;
CREATE TABLE batches (writer TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
ADD = f"""
INSERT INTO usage VALUES (?, ?, ?, {", ".join("?" for _ in SUMS)})
ON CONFLICT DO UPDATE SET {", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)}
"""
LEND = """
INSERT INTO lending VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens
"""
NOTE = "INSERT INTO batches VALUES (?, ?) ON CONFLICT DO UPDATE SET number = excluded.number"
USAGE = f"SELECT day, tenant, model, {', '.join(SUMS)} FROM usage WHERE day BETWEEN ? AND ?"
LENDING = "SELECT day, borrower, model, lender, tokens FROM lending WHERE day BETWEEN ? AND ?"


class StoreError(Exception):
    """The file cannot be used; the text says why."""


def day_of(date: date) -> int:
    """A day as ``Key`` counts it."""
    return date.toordinal() - EPOCH


def date_of(day: int) -> date:
    """The date of a day as ``Key`` counts it."""
    return date.fromordinal(day + EPOCH)


class UsageStore:
    """Adds what ``usage`` counts to a file; ``file`` None: it stays where it is, in memory."""

    def __init__(self, usage: Usage, file: Path | None) -> None:
        self._usage = usage
        self._file = file
        self._lock = threading.Lock()
        # A commit may be said to have failed and yet be in the file. So a batch is written with
        # its number, in one transaction, and not again if its number is there.
        self._writer = uuid.uuid4().hex
        self._number = 0
        self._batch: Mapping[Key, Counts] = {}
        self._failing = False

    def flush(self) -> None:
        """Writes what has been counted since the last time; what went wrong is in the log."""
        with self._lock:
            self._flush()

    def history(self, first: date, last: date) -> dict[Key, Counts]:
        """All counts of the days ``[first, last]``, up to this moment. Raises StoreError."""
        with self._lock:
            self._flush()
            found = {} if self._file is None else self._read(first, last)
            for unwritten in (self._batch, self._usage.peek()):
                for key, counts in unwritten.items():
                    if day_of(first) <= key.day <= day_of(last):
                        found.setdefault(key, Counts()).add(counts)
        return found

    def _flush(self) -> None:
        if self._file is None:
            return
        try:
            for _ in range(2):  # what is left of the last time, and what has come since
                if not self._batch:
                    self._batch = self._usage.take()
                    self._number += 1
                if self._batch:
                    self._write(self._batch)
                    self._batch = {}
        except StoreError as error:
            if not self._failing:
                logger.error("usage cannot be kept: %s; it is in memory, and tried again", error)
            self._failing = True
            return
        if self._failing:
            logger.info("usage is kept again in %s", self._file)
        self._failing = False

    def _write(self, batch: Mapping[Key, Counts]) -> None:
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            query = "SELECT number FROM batches WHERE writer = ?"
            written = database.execute(query, (self._writer,)).fetchone()
            if written is None or written[0] < self._number:
                for key, counts in batch.items():
                    _add(database, key, counts)
                database.execute(NOTE, (self._writer, self._number))
            database.execute("COMMIT")

    def _read(self, first: date, last: date) -> dict[Key, Counts]:
        found: dict[Key, Counts] = {}
        days = (first.isoformat(), last.isoformat())
        with self._open() as database:
            for day, tenant, model, *sums in database.execute(USAGE, days):
                key = Key(day_of(date.fromisoformat(day)), tenant, model)
                found[key] = Counts(*sums)
            for day, borrower, model, lender, tokens in database.execute(LENDING, days):
                key = Key(day_of(date.fromisoformat(day)), borrower, model)
                found.setdefault(key, Counts()).borrowed[lender] = tokens
        return found

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file, with its tables. Raises StoreError, and turns what SQLite raises into it."""
        database = None
        try:
            # A connection of its own each time: the file may be moved away, or come back.
            database = sqlite3.connect(str(self._file), timeout=BUSY, isolation_level=None)
            _prepare(database)
            yield database
        except (sqlite3.Error, OSError, ValueError) as error:
            raise StoreError(f"{self._file}: {error}") from error
        finally:
            if database is not None:
                database.close()


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
    elif version != VERSION:
        raise StoreError(f"its tables are of version {version}, and this server's of {VERSION}")


def _add(database: sqlite3.Connection, key: Key, counts: Counts) -> None:
    day = date_of(key.day).isoformat()
    sums = [getattr(counts, name) for name in SUMS]
    database.execute(ADD, (day, key.tenant, key.model, *sums))
    for lender, tokens in counts.borrowed.items():
        database.execute(LEND, (day, lender, key.tenant, key.model, tokens))
