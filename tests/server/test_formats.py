"""Patterns of dates and times."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest

from server.formats import PATTERNS, exact


def test_dates_are_those_of_the_calendar() -> None:
    days = {date(1896, 1, 1) + timedelta(days=n) for n in range(200 * 366)}
    real = {day.isoformat() for day in days}
    for year in (1896, 1900, 1904, 1999, 2000, 2023, 2024):
        for month in range(14):
            for day in range(33):
                text = f"{year:04}-{month:02}-{day:02}"
                assert bool(re.fullmatch(PATTERNS["date"], text)) == (text in real), text
    assert not re.fullmatch(PATTERNS["date"], "0000-02-29")


@pytest.mark.parametrize("text", ["23:59:59Z", "00:00:00.123+05:30"])
def test_times(text: str) -> None:
    assert re.fullmatch(PATTERNS["time"], text)
    assert re.fullmatch(PATTERNS["date-time"], f"2024-02-29T{text}")


@pytest.mark.parametrize("text", ["24:00:00Z", "23:59:60Z", "10:00Z", "10:00:00"])
def test_no_times(text: str) -> None:
    assert not re.fullmatch(PATTERNS["time"], text)


def test_where_formats_are_meant() -> None:
    day = {"type": "string", "format": "date"}
    known = {"type": "string", "pattern": PATTERNS["date"]}
    schema = {
        "properties": {"format": day, "const": day, "x": day | {"pattern": "^2"}},
        "const": day,
        "items": [day, {"type": "string", "format": "uuid"}],
    }
    assert exact(schema) == {
        "properties": {
            "format": known,
            "const": known,
            "x": {"type": "string", "pattern": "^2", "allOf": [known]},
        },
        "const": day,
        "items": [known, {"type": "string", "format": "uuid"}],
    }
