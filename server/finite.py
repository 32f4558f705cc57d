"""Whether values of a JSON schema can come to an end. Pure.

A schema whose values must hold another value of the same schema has none: a reply that keeps to
its grammar would never be complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

COMPOUND = frozenset(("object", "array"))
CHILDREN = ("properties", "patternProperties", "anyOf", "oneOf", "allOf", "prefixItems", "items")


def is_finite(schema: dict[str, Any]) -> bool:
    """Whether there are finite values of a schema, and of all parts that a value may reach.

    What the grammar compiler does not read counts as harmless.
    """
    return _Gates(schema).all_open()


class _Gates:
    """A gate for each part of the schema, open once a finite value of it is known.

    What a value needs feeds its gate; ``_needs`` counts what is still lacking. So the least fixed
    point takes time in proportion to the schema, however its parts refer to each other.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._root = schema
        self._needs: list[int] = []
        self._feeds: list[list[int]] = []
        self._gates: dict[int, int] = {}  # by a part's id
        self._waiting: list[dict[str, Any]] = []
        self._of(schema)
        while self._waiting:
            self._read(self._waiting.pop())

    def all_open(self) -> bool:
        """Opens what can be opened, and tells whether that is all."""
        opened = [gate for gate, needs in enumerate(self._needs) if needs == 0]
        for gate in opened:  # which grows
            for fed in self._feeds[gate]:
                self._needs[fed] -= 1
                if self._needs[fed] == 0:
                    opened.append(fed)
        return all(self._needs[gate] <= 0 for gate in self._gates.values())

    def _read(self, part: dict[str, Any]) -> None:
        gate = self._of(part)
        for child in _children(part):
            self._of(child)
        if "const" in part or "enum" in part:
            return
        target = self._target(part.get("$ref"))
        self._all(gate, [target, *_list(part.get("allOf"))])
        for name in ("anyOf", "oneOf"):
            if _list(part.get(name)):
                self._any(gate, [[branch] for branch in part[name]])
        kinds = part.get("type")
        kinds = [kinds] if isinstance(kinds, str) else _list(kinds)
        if kinds and all(kind in COMPOUND for kind in kinds):
            self._any(gate, [_held(part, kind) for kind in kinds])
        if kinds == ["object"]:
            for choices in _choices(part):
                self._any(gate, [[choice] for choice in choices])

    def _of(self, part: dict[str, Any]) -> int:
        """The gate of a part, which is still to be read if it is new."""
        if id(part) not in self._gates:
            self._gates[id(part)] = self._gate(0)
            self._waiting.append(part)
        return self._gates[id(part)]

    def _gate(self, needs: int) -> int:
        self._needs.append(needs)
        self._feeds.append([])
        return len(self._needs) - 1

    def _all(self, gate: int, parts: Iterable[Any]) -> None:
        """Makes a gate need these parts, too; what is no object says yes to everything."""
        for part in parts:
            if isinstance(part, dict):
                self._needs[gate] += 1
                self._feeds[self._of(part)].append(gate)

    def _any(self, gate: int, ways: Sequence[Iterable[Any]]) -> None:
        """Makes a gate need all parts of one of these ways."""
        found = self._gate(1)
        self._needs[gate] += 1
        self._feeds[found].append(gate)
        for parts in ways:
            way = self._gate(0)
            self._all(way, parts)
            self._feeds[way].append(found)

    def _target(self, reference: Any) -> Any:
        """What a reference inside the document means; None where that is no part of it."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        found: Any = self._root
        for step in unquote(reference[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step[:9]) < len(found):
                found = found[int(step[:9])]
            elif isinstance(found, dict):
                found = found.get(step)
            else:
                return None
        return found if reference == "#" or "/" in reference else None


def _held(part: dict[str, Any], kind: str) -> list[Any]:
    """What every object or array of a schema holds at least."""
    if kind == "object":
        named = _dict(part.get("properties"))
        if part.get("patternProperties"):
            return [named.get(name) for name in _names(part)]
        other = part.get("additionalProperties")
        return [named.get(name, other) for name in _names(part)]
    least = part.get("minItems", 0)
    least = int(least) if isinstance(least, (int, float)) and least < 1 << 31 else 0
    items, first = part.get("items"), _list(part.get("prefixItems"))
    if isinstance(items, list):  # as schemas had it before 2020
        first, items = items, part.get("additionalItems")
    return [*first[: max(0, least)], *([items] if least > len(first) else ())]


def _choices(part: dict[str, Any]) -> list[list[Any]]:
    """Lists of schemas, of each of which every object has a value of one at least."""
    named, patterns = (_dict(part.get(name)) for name in ("properties", "patternProperties"))
    others = [*patterns.values(), part.get("additionalProperties")]
    found = []
    if patterns and any(name not in named for name in _names(part)):
        found.append(others)
    least = part.get("minProperties", 0)
    if isinstance(least, (int, float)) and least > 0:
        found.append([*named.values(), *others])
    return found


def _children(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas inside of which a value may come to stand."""
    found: list[Any] = [part.get("additionalProperties"), part.get("items")]
    for name in CHILDREN:
        value = part.get(name)
        if isinstance(value, dict) and name != "items":
            found += value.values()
        elif isinstance(value, list):
            found += value
    return [child for child in found if isinstance(child, dict)]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(part: dict[str, Any]) -> list[str]:
    return [name for name in _list(part.get("required")) if isinstance(name, str)]
