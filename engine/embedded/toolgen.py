"""Conversations in which tools are offered: known ones, invented ones, calls, results, refusals."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from engine.embedded import knowledge, pasted
from engine.embedded.catalogue import CATALOGUE, IDLE

Schema = dict[str, Any]


def value(rng: Random, kind: str, held_out: bool) -> str | int:
    """An argument of that kind; held-out values use words that training never saw."""
    made = pasted.made_up(rng)
    if kind == "int":
        return rng.randrange(1, rng.choice((10, 100, 1000)))
    if kind == "sum":
        return f"{rng.randrange(1000)} {rng.choice('+-*/')} {rng.randrange(1, 1000)}"
    simple = {
        "city": knowledge.HELD_OUT_CITIES if held_out else (*knowledge.CITIES, made.capitalize()),
        "country": tuple(knowledge.CAPITALS),
        "name": (*knowledge.NAMES, made, made.capitalize()),
        "path": (pasted.file_path(rng),),
        "dir": ("src", "tests", "docs", f"src/{made}", f"/home/{made}", "."),
        "ident": (made, pasted.identifier(rng)),
        "email": (f"{rng.choice(knowledge.NAMES).lower()}@{made}.com",),
        "symbol": (made[:4].upper(), "AAPL", "GOOG", "TSLA"),
        "language": ("French", "German", "Spanish", "Italian", "Japanese"),
        "currency": ("USD", "EUR", "GBP", "JPY", "CHF"),
        "date": (f"2025-{rng.randint(10, 12)}-{rng.randint(10, 28)}", "Monday", "Friday"),
        "command": (
            "ls",
            f"ls {made}",
            "git status",
            f"pytest tests/{made}.py",
            "make test",
            f"cat {made}.txt",
            f"python {made}.py",
            f"echo {made}",
            "pwd",
        ),
    }
    if kind in simple:
        return rng.choice(simple[kind])
    return " ".join(pasted.word(rng) for _ in range(rng.choice((1, 2, 2, 3, 4))))


def schema(rng: Random, name: str, about: str, params: dict[str, str]) -> Schema:
    """An OpenAI-style tool."""
    properties: dict[str, Any] = {}
    for param, kind in params.items():
        properties[param] = {"type": "integer" if kind == "int" else "string"}
        if rng.random() < 0.2:
            properties[param]["description"] = f"The {param.replace('_', ' ')}"
    parameters = {"type": "object", "properties": properties, "required": list(params)}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


class Request(NamedTuple):
    """What a user asks, and the call that answers it."""

    ask: str
    name: str
    arguments: dict[str, str | int]


Made = tuple[Schema, list[Request]]


def _known(rng: Random, held_out: bool, count: int) -> Made:
    spec = rng.choice(CATALOGUE)
    pairs = [item.split(":") for item in spec.params.split()]
    first = rng.random() < 0.7  # most servers call a thing by its commonest name
    params = {n.split("|")[0] if first else rng.choice(n.split("|")): k for n, k in pairs}
    names = spec.names.split("|")
    name = names[0] if first else rng.choice(names)
    requests = []
    for _ in range(count):
        values = {param: value(rng, kind, held_out) for param, kind in params.items()}
        requests.append(Request(rng.choice(spec.asks).format(*values.values()), name, values))
    return schema(rng, name, spec.about, params), requests


def _held_out_pair(verb: str, noun: str) -> bool:
    return (len(verb) * 7 + len(noun) * 3 + ord(noun[0])) % 6 == 0


def _invented(rng: Random, held_out: bool, count: int) -> Made:
    while True:
        verb, noun = rng.choice(knowledge.VERBS), rng.choice(knowledge.NOUNS)
        if _held_out_pair(verb, noun) == held_out:
            break
    kinds = ("phrase", "int", "name", "city", "ident", "date", "path")
    chosen = rng.sample(knowledge.PARAMETERS, rng.choice((0, 1, 1, 2)))
    params = {param: rng.choice(kinds) for param in chosen}
    requests = []
    for _ in range(count if params else 1):
        values = {param: value(rng, kind, held_out) for param, kind in params.items()}
        start = rng.choice(("{0} the {1}", "Please {0} the {1}", "Can you {0} the {1}"))
        shape = rng.choice((" with {0} {1}", " with {0} {1}", ' with {0} "{1}"'))
        ask = start.format(verb, noun) + ", and".join(shape.format(*v) for v in values.items())
        requests.append(Request(ask[0].upper() + ask[1:] + ".", f"{verb}_{noun}", values))
    return schema(rng, f"{verb}_{noun}", f"{verb.capitalize()} the {noun}", params), requests


class Offer(NamedTuple):
    """Tools in random order, requests that they fit, and one that none of them fits."""

    tools: list[Schema]
    requests: list[Request]
    unfit: Request | None


def offer(rng: Random, *, idle: int = 0, held_out: bool = False) -> Offer:
    """One to three tools, one to three requests for each, and `idle` tools that nobody asks for."""
    tools: dict[str, Schema] = {}
    requests: list[Request] = []
    count = rng.choice((1, 1, 1, 2, 2, 3))
    for _ in range(count):
        tool, asked = rng.choice((_known, _known, _invented))(rng, held_out, 4)
        about = tool["function"]["description"]
        if about not in tools:
            tools[about] = tool
            requests += asked
    other, (unfit,) = rng.choice((_known, _invented))(rng, held_out, 1)
    shuffled = [*tools.values(), *_idle_tools(rng, idle)]
    rng.shuffle(shuffled)
    rng.shuffle(requests)
    fits = other["function"]["description"] in tools
    return Offer(shuffled, requests, None if fits else unfit)


def _idle_tools(rng: Random, count: int) -> list[Schema]:
    out = []
    for name, about, params in rng.sample(IDLE, min(count, len(IDLE))):
        lines = "\n".join((about, pasted.rules(rng), pasted.prose(rng, rng.randrange(3))))
        out.append(schema(rng, name, lines, dict.fromkeys(params.split(), "phrase")))
    return out


def coding_tools(seed: int) -> list[Schema]:
    """What a coding agent offers with every prompt: two dozen tools, most of them long-winded."""
    rng = Random(seed)
    tools = _idle_tools(rng, len(IDLE))
    for spec in CATALOGUE:
        named = [name for name in spec.names.split("|") if name[0].isupper()]
        params = {item.split("|")[0]: item.split(":")[1] for item in spec.params.split()}
        params = {name.split(":")[0]: kind for name, kind in params.items()}
        tools += [schema(rng, name, f"{spec.about}\n{pasted.rules(rng)}", params) for name in named]
    while len(tools) < 24:
        tools.append(_invented(rng, False, 1)[0])
    rng.shuffle(tools)
    return tools


def result(rng: Random, room: int) -> tuple[str, str]:
    """What a tool returns, at most about `room` characters, and what the user is told."""
    sort = rng.random()
    if sort < 0.3:
        key, item = rng.choice(knowledge.NOUNS), rng.choice((pasted.word(rng), rng.randrange(1000)))
        return json.dumps({key: item}), f"The tool says that the {key} is {item}."
    if sort < 0.85:
        text = " ".join(pasted.word(rng) for _ in range(rng.randint(1, 4)))
        if sort < 0.5:
            text = f"{rng.randint(0, 39)} degrees and {rng.choice(knowledge.ADJECTIVES)}"
        return text, f"The tool says: {text}."
    size = rng.randint(50, max(51, room))
    return pasted.filler(rng, size), "I have read it. Tell me what you would like to do next."
