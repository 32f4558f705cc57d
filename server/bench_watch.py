"""Memory of the server under load, read from its ``/metrics`` while the load runs.

Any endpoint may be under load; one without these metrics is looked at once and left alone.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import aiohttp

EVERY = 1.0  # s between two looks
LIMIT = aiohttp.ClientTimeout(total=10)
POINTS = 240  # at most, in a report

# Not a parser for the whole format, which would take the event loop's time from the replies.
SAMPLE = re.compile(
    r'^commons_(?:memory|kv_cache)_bytes\{[^}]*?(?:kind|state)="(\w+)"[^}]*\} (\S+)$', re.MULTILINE
)


class Look(NamedTuple):
    """Bytes by what they are for, ``at`` so many seconds after the start."""

    at: float
    bytes: Counter[str]

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"at_s": round(self.at, 2)} | {f"{k}_bytes": n for k, n in self.bytes.items()}


async def watch(
    session: aiohttp.ClientSession, base: str, key: str, start: float, looks: list[Look]
) -> None:
    """Adds to ``looks`` until cancelled, or at once ends where there is nothing to see."""
    parts = urlsplit(base)
    url = urlunsplit((parts.scheme, parts.netloc, "/metrics", "", ""))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    while True:
        found = await _look(session, url, headers)
        if found:
            looks.append(Look(time.perf_counter() - start, found))
        elif not looks:
            return
        await asyncio.sleep(EVERY)


async def _look(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> Counter[str]:
    try:
        async with session.get(url, headers=headers, timeout=LIMIT) as response:
            text = await response.text() if response.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
        text = ""
    found: Counter[str] = Counter()
    for name, value in SAMPLE.findall(text):
        found[name] += int(float(value))
    return found


def memory(looks: list[Look]) -> list[dict[str, Any]] | None:
    """The looks as JSON, thinned out where they are many; None where there are none."""
    every = -(-len(looks) // POINTS)
    return [look.json() for look in looks[:: every or 1]] or None
