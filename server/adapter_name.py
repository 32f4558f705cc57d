"""What an adapter may be called."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """``name``, if it can be a part of a model id. Raises ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is no name for an adapter: up to 64 letters, digits, '.', '_' and '-'"
        )
    return name
