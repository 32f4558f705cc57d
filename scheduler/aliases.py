"""Other names for models: what clients hard-code, and what is served in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase


def is_pattern(name: str) -> bool:
    """Whether an alias stands for more than its own name."""
    return any(char in name for char in "*?[")


class Aliases:
    """Names and patterns with what they mean; exact names go first, then longer patterns."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        named = dict(pairs)
        self._exact = {name: target for name, target in named.items() if not is_pattern(name)}
        patterns = [(name, target) for name, target in named.items() if is_pattern(name)]
        self._patterns = sorted(patterns, key=lambda p: (-len(p[0]), p[0]))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The exact names with their targets."""
        return iter(self._exact.items())

    def target(self, name: str) -> str | None:
        """The model that ``name`` means; None where it is no alias."""
        if name in self._exact:
            return self._exact[name]
        return next((target for p, target in self._patterns if fnmatchcase(name, p)), None)
