"""``/admin/usage``: what tenants have used, by the day, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, NamedTuple

import anyio
from starlette.requests import Request
from starlette.responses import Response

from scheduler.usage import SUMS, Counts, Key

from .dialect import encode
from .errors import ApiError, bad_request
from .usage_store import StoreError, UsageStore, date_of

PARAMETERS = ("from", "to", "tenant", "format")
FORMATS = ("json", "csv")
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
COLUMNS = ("day", "tenant", "model", *SUMS, "lent_tokens", "borrowed_tokens")


class Query(NamedTuple):
    """The days ``[first, last]``, in UTC, of one tenant or of all."""

    first: date
    last: date
    tenant: str | None
    csv: bool


class UsageAdmin:
    """The route."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    async def get(self, request: Request) -> Response:
        """``GET /admin/usage``: a row for each day, tenant and model."""
        query = _query(request)
        try:
            history = await anyio.to_thread.run_sync(self._store.history, query.first, query.last)
        except StoreError as error:
            message = f"The usage cannot be read: {error}."
            raise ApiError(503, message, "server_error", "usage_unreadable") from error
        rows = usage_rows(history)
        if query.tenant is not None:
            rows = [row for row in rows if row["tenant"] == query.tenant]
        if query.csv:
            return Response(_table(rows), media_type="text/csv")
        lending = [
            pair
            for pair in lending_rows(history)
            if query.tenant in (None, pair["lender"], pair["borrower"])
        ]
        return Response(encode({"usage": rows, "lending": lending}), media_type="application/json")


def usage_rows(history: Mapping[Key, Counts]) -> list[dict[str, Any]]:
    """The rows, in the order of days, tenants and models.

    What is lent and borrowed is so between different tenants.
    """
    rows: dict[Key, dict[str, Any]] = {}

    def row(key: Key) -> dict[str, Any]:
        if key not in rows:
            day = date_of(key.day).isoformat()
            rows[key] = dict.fromkeys(COLUMNS, 0) | key._asdict() | {"day": day}
        return rows[key]

    for key, counts in history.items():
        row(key).update({name: _rounded(getattr(counts, name)) for name in SUMS})
        for lender, tokens in counts.borrowed.items():
            if lender != key.tenant:
                row(key)["borrowed_tokens"] += tokens
                row(key._replace(tenant=lender))["lent_tokens"] += tokens
    return [rows[key] for key in sorted(rows)]


def lending_rows(history: Mapping[Key, Counts]) -> list[dict[str, Any]]:
    """Tokens lent, by pair; a tenant's requests lend to each other, too."""
    return [
        {
            "day": date_of(key.day).isoformat(),
            "lender": lender,
            "borrower": key.tenant,
            "model": key.model,
            "tokens": tokens,
        }
        for key, counts in sorted(history.items(), key=lambda item: item[0])
        for lender, tokens in sorted(counts.borrowed.items())
    ]


def _rounded(value: float) -> float:
    return round(value, 6) if isinstance(value, float) else value


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _query(request: Request) -> Query:
    """What is asked for. Raises ApiError 400."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in PARAMETERS:
            names = ", ".join(PARAMETERS)
            raise bad_request(f"{name[:40]!r} is no parameter here; there are {names}.", name[:40])
        if name in given:
            raise bad_request(f"{name} is given twice.", name)
        given[name] = value
    first = _date(given, "from", date.min)
    last = _date(given, "to", date.max)
    if first > last:
        raise bad_request("from is later than to.", "from")
    return Query(first, last, given.get("tenant"), _wants_csv(given, request))


def _date(given: Mapping[str, str], name: str, default: date) -> date:
    text = given.get(name)
    if text is None:
        return default
    try:
        if not DATE.fullmatch(text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise bad_request(f"{name}: {text[:40]!r} is no day; write it 2030-12-31.", name) from None


def _wants_csv(given: Mapping[str, str], request: Request) -> bool:
    wanted = given.get("format")
    if wanted is None:
        return "text/csv" in request.headers.get("accept", "")
    if wanted not in FORMATS:
        raise bad_request(f"format is one of {', '.join(FORMATS)}.", "format")
    return wanted == "csv"
