"""Lists in pages, as OpenAI's clients walk through them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from .errors import bad_request
from .response_input import Item

MOST, USUAL = 100, 20  # items of a page
ORDERS = ("asc", "desc")


def page(items: list[Item], request: Request) -> dict[str, Any]:
    """The page of ``items`` that a request wants, by default newest first. Raises ApiError 400."""
    query = request.query_params
    order = query.get("order", "desc")
    if order not in ORDERS:
        raise bad_request(f"order is one of {', '.join(ORDERS)}.", "order")
    limit = _limit(query.get("limit"))
    sorted_items = items if order == "asc" else items[::-1]
    begin = 0
    if (after := query.get("after")) is not None:
        ids = [item["id"] for item in sorted_items]
        if after not in ids:
            raise bad_request(f"There is no item {after[:80]!r} here.", "after")
        begin = ids.index(after) + 1
    shown = sorted_items[begin : begin + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": begin + limit < len(items),
    }


def _limit(text: str | None) -> int:
    if text is None:
        return USUAL
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST):
        raise bad_request(f"limit is between 1 and {MOST}.", "limit")
    return int(text)
