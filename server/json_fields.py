"""Which field of a JSON body is at fault where the body as a whole cannot be read."""

from __future__ import annotations

import re

# A string that does not end is one token too: from its quotes no search begins anew.
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[{}\[\],:]', re.DOTALL)
MOST_SCANNED = 1 << 20  # bytes; what is further on is not looked for
MOST_TOKENS = 100_000  # nor what is behind more of them
NAME = re.compile(rb'"([\w-]{1,64})"', re.ASCII)


def field_at(body: bytes, position: int) -> str | None:
    """The outermost field whose value is at ``position``."""
    return _field(body[: position + 1], None) if position < MOST_SCANNED else None


def deep_field(body: bytes, depth: int) -> str | None:
    """The outermost field whose value is nested more than ``depth`` deep."""
    return _field(body[:MOST_SCANNED], depth)


def _field(body: bytes, most: int | None) -> str | None:
    depth, key, last = 0, None, b""
    for number, found in enumerate(TOKEN.finditer(body)):
        if number == MOST_TOKENS:
            return None
        token = found[0]
        if token in b"{[":
            depth += 1
            if most is not None and depth > most:
                return _name(key)
        elif token in b"}]":
            depth -= 1
        elif depth != 1:
            continue
        elif token == b":":
            key = last
        elif token == b",":
            key = None
        else:
            last = token
    return _name(key) if most is None else None


def _name(key: bytes | None) -> str | None:
    found = None if key is None else NAME.fullmatch(key)
    return None if found is None else found[1].decode("ascii")
