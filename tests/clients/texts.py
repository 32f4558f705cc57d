"""Tools and texts that the clients' bodies are filled with; equal seeds give equal texts."""

from __future__ import annotations

import random
from typing import Any

VERBS = ("Read", "Write", "Edit", "Find", "List", "Run", "Stop", "Fetch", "Plan", "Ask", "Show")
NOUNS = ("File", "Folder", "Task", "Note", "Page", "Shell", "Cell", "Branch")
WORDS = (
    *("the", "a", "of", "to", "in", "and", "for", "with", "path", "line", "text", "code", "test"),
    *("result", "value", "name", "list", "error", "file", "tool", "when", "where", "which"),
    *("must", "only", "each", "first", "last", "before", "after", "returns", "given", "from"),
)


def prose(words: int, seed: object) -> str:
    """Some sentences."""
    rng = random.Random(str(seed))
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def names(count: int) -> list[str]:
    """Different names of tools."""
    return [f"{verb}{noun}" for noun in NOUNS for verb in VERBS][:count]


def schema(seed: object) -> dict[str, Any]:
    """A tool's parameters: texts, a choice, a number, and a list of objects."""
    edit = {
        "type": "object",
        "properties": {
            "old_text": {"type": "string", "description": prose(6, (seed, 1))},
            "new_text": {"type": "string", "description": prose(6, (seed, 2))},
            "all": {"type": "boolean", "default": False},
        },
        "required": ["old_text", "new_text"],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": prose(8, (seed, 3))},
            "mode": {"type": "string", "enum": ["content", "count", "names"]},
            "limit": {"type": "integer", "minimum": 1, "description": prose(5, (seed, 4))},
            "edits": {"type": "array", "items": edit, "minItems": 1},
        },
        "required": ["path", "edits"],
        "additionalProperties": False,
    }


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same JSON value with its objects' keys in another order."""
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: shuffled(value[key], rng) for key in keys}
    if isinstance(value, list):
        return [shuffled(item, rng) for item in value]
    return value
