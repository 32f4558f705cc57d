"""Random JSON schemas, and whether replies by them validate: ``python -m tests.structured``.

Their instances are finite and short, so that a model with random weights comes to an end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jsonschema

from tests.models import make
from tests.server.process import Server

Schema = dict[str, Any]

MOST_TOKENS = 700
CONTEXT = 2048
PATTERNS = ("^[a-c]{1,4}$", "^x[0-9]+y$", "^(on|off)$", "^[A-Z][a-z]{0,3}-[0-9]{2}$", "ab?c")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4")
WORDS = ("a", "red", "two words", 'with "quotes"', "é", "", "new\nline", "日本")


def schema(rng: random.Random) -> Schema:
    """An object's schema with everything that clients use."""
    made = _object(rng, 3)
    made["$defs"] = {"leaf": _leaf(rng), "pair": _pair(rng)}
    return made


def _any(rng: random.Random, depth: int) -> Schema:
    if depth == 0 or rng.random() < 0.4:
        return _leaf(rng)
    make = rng.choice((_object, _array, _choice, _reference))
    return make(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(("id", "name", "kind", "a b", 'q"', "ü", "x-y"), rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def _pair(rng: random.Random) -> Schema:
    return {"type": "array", "prefixItems": [_leaf(rng), _leaf(rng)], "items": False, "minItems": 2}


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    most = least + rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth), "minItems": least, "maxItems": most}


def _choice(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randint(2, 3))]}


def _reference(rng: random.Random, _: int) -> Schema:
    return {"$ref": rng.choice(("#/$defs/leaf", "#/$defs/pair"))}


def _leaf(rng: random.Random) -> Schema:
    low = rng.randint(-50, 50)
    kinds: tuple[Schema, ...] = (
        {"type": "string", "maxLength": rng.randint(0, 8)},
        {"type": "string", "minLength": 2, "maxLength": 4},
        {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 12},
        {"type": "string", "format": rng.choice(FORMATS)},
        {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)},
        {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 9},
        {"type": "integer", "minimum": 0, "maximum": 90, "multipleOf": rng.randint(2, 7)},
        {"type": "number", "minimum": low, "maximum": low + 2.5},
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["boolean", "null"]},
        {"const": rng.choice((7, "seven", None, [1, "x"]))},
        {"enum": [*rng.sample(WORDS, 3), rng.randint(0, 9), None]},
    )
    return rng.choice(kinds)


class Verdict(NamedTuple):
    """How many replies came to their end, and what is wrong with which."""

    finished: int
    wrong: list[str]


def check(url: str, numbers: range, at_once: int = 8) -> Verdict:
    """Asks for an answer by each of the schemas with these numbers."""
    with httpx.Client(base_url=url, timeout=600) as http, ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(lambda number: _one(http, number), numbers))
    wrong = [f"schema {n}: {what}" for n, what in zip(numbers, found, strict=True) if what]
    return Verdict(sum(what is not None for what in found), wrong)


def _one(http: httpx.Client, number: int) -> str | None:
    """What is wrong with the answer, or nothing; None where it was cut off."""
    rng = random.Random(number)
    wanted = schema(rng)
    body = {
        "model": "tiny-qwen3",
        "messages": [{"role": "user", "content": f"number {number}"}],
        "max_tokens": MOST_TOKENS,
        "temperature": rng.choice((0.0, 1.0)),
        "seed": number,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "it", "schema": wanted, "strict": True},
        },
    }
    response = http.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        return f"{response.status_code} {response.text[:300]} for {json.dumps(wanted)}"
    choice = response.json()["choices"][0]
    if choice["finish_reason"] != "stop":
        return None
    text = choice["message"]["content"]
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(wanted, format_checker=checker).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{text!r} {str(error)[:300]}"
    return ""


def main() -> int:
    """Prints how many answers validate; fails where one does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.schemas)
    with tempfile.TemporaryDirectory() as parent:
        model = make("qwen3", Path(parent) / "tiny-qwen3")
        with Server("--model", str(model), "--max-context", str(CONTEXT)) as server:
            verdict = check(server.ready().url, numbers)
    for line in verdict.wrong:
        print(line)
    sound = verdict.finished - len(verdict.wrong)
    print(f"{len(numbers)} schemas: {verdict.finished} answers finished, {sound} of them validate")
    return bool(verdict.wrong)


if __name__ == "__main__":
    sys.exit(main())
