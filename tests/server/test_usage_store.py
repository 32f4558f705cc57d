"""Usage in a file: kept once and only once, whatever happens to the file or to who writes it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest

from scheduler.usage import Counts, Key, Usage
from server import usage_store
from server.usage_store import StoreError, UsageStore, date_of, day_of

DAY = date_of(20_000)
KEY = Key(20_000, "a", "m")
ONE = Counts(1, 10, 4, 3, 0.25, 0.5, {"b": 4, "a": 2})
ALWAYS = (date.min, date.max)


def add(usage: Usage, key: Key = KEY) -> None:
    with usage.lock:
        usage.counts(key).add(ONE)


def counted(times: int = 1) -> Usage:
    usage = Usage()
    for _ in range(times):
        add(usage)
    return usage


def total(times: int) -> dict[Key, Counts]:
    sums = Counts()
    for _ in range(times):
        sums.add(ONE)
    return {KEY: sums}


def test_days() -> None:
    assert day_of(date(1970, 1, 1)) == 0
    assert date_of(day_of(date(2030, 12, 31))) == date(2030, 12, 31)


def test_counts_are_kept_across_restarts(tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    for times in (2, 3):
        store = UsageStore(counted(times), file)
        store.flush()
        store.flush()
    assert UsageStore(counted(0), file).history(*ALWAYS) == total(5)
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("SELECT day, tenant FROM usage").fetchall() == [
            (DAY.isoformat(), "a")
        ]
    database.close()


def test_history_is_up_to_the_moment_and_of_the_days_asked_for(tmp_path: Path) -> None:
    usage = Usage()
    store = UsageStore(usage, tmp_path / "usage.db")
    for day in (20_000, 20_001, 20_002):
        add(usage, KEY._replace(day=day))
    found = store.history(*ALWAYS)
    assert [key.day for key in sorted(found)] == [20_000, 20_001, 20_002]
    assert list(store.history(date_of(20_001), date_of(20_001))) == [Key(20_001, "a", "m")]
    assert store.history(date.min, date_of(19_999)) == {}


def test_without_a_file_all_stays_in_memory() -> None:
    usage = counted(2)
    store = UsageStore(usage, None)
    store.flush()
    assert store.history(*ALWAYS) == total(2) == store.history(*ALWAYS)
    assert store.history(date.min, date_of(19_999)) == {}


class Doubtful(UsageStore):
    """Its first commit is in the file, but said to have failed."""

    told = False

    def _write(self, batch: Mapping[Key, Counts]) -> None:
        super()._write(batch)
        if not self.told:
            self.told = True
            raise StoreError("disk I/O error")


def test_a_commit_in_doubt_is_not_repeated(tmp_path: Path) -> None:
    usage = counted(2)
    store = Doubtful(usage, tmp_path / "usage.db")
    store.flush()
    add(usage)
    store.flush()
    assert store.history(*ALWAYS) == total(3)


def test_a_locked_file_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage_store, "BUSY", 0.0)
    caplog.set_level(logging.INFO, "commons.usage")
    file, usage = tmp_path / "usage.db", counted()
    store = UsageStore(usage, file)
    store.flush()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for _ in range(3):
        add(usage)
        store.flush()
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert str(file) in caplog.text and "locked" in caplog.text
    assert store.history(*ALWAYS) == total(4)  # a reader is let in, and memory has the rest
    other.execute("COMMIT")
    other.close()
    store.flush()
    assert [r.levelname for r in caplog.records] == ["ERROR", "INFO"]
    assert UsageStore(Usage(), file).history(*ALWAYS) == total(4)


def test_a_corrupt_file_is_left_alone_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "usage.db"
    file.write_bytes(b"not a database at all" * 100)
    before, usage = file.read_bytes(), counted()
    store = UsageStore(usage, file)
    store.flush()
    add(usage)
    store.flush()
    assert file.read_bytes() == before
    assert "not a database" in caplog.text
    with pytest.raises(StoreError, match="not a database"):
        store.history(*ALWAYS)
    file.unlink()
    assert store.history(*ALWAYS) == total(2)


def test_a_folder_that_is_not_there_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "later"
    store = UsageStore(counted(), folder / "usage.db")
    store.flush()
    assert "unable to open" in caplog.text
    folder.mkdir()
    store.flush()
    assert UsageStore(Usage(), folder / "usage.db").history(*ALWAYS) == total(1)


def test_tables_of_another_version_are_not_touched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "usage.db"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    UsageStore(counted(), file).flush()
    assert "version 7" in caplog.text
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == []
    database.close()


def test_two_servers_add_to_one_file(tmp_path: Path) -> None:
    file, rounds = tmp_path / "usage.db", 20
    usages = [Usage(), Usage()]

    def serve(usage: Usage) -> None:
        store = UsageStore(usage, file)
        for _ in range(rounds):
            add(usage)
            store.flush()
        store.flush()

    servers = [threading.Thread(target=serve, args=(usage,)) for usage in usages]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert UsageStore(Usage(), file).history(*ALWAYS) == total(2 * rounds)
