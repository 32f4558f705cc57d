"""Prompts as long as coding clients send them, with short endings that the model is to answer.

Their text is generated: rules, documentation, dozens of tools with nested schemas."""

from __future__ import annotations

import pydoc_data.topics
import re
from functools import cache
from random import Random
from typing import Any, NamedTuple

from engine.embedded import corpus, pasted, toolgen

_ROLES = (
    "You are a coding agent in a terminal.",
    "You are an interactive command-line tool that helps users with software.",
    "You are an assistant that works in the user's repository.",
    "You are a helpful assistant.",
)
_TAGS = ("env", "context", "reminder", "system-reminder", "instructions", "permissions", "skills")
_WORD = re.compile(r"[a-z]+")
_KINDS = ("string", "string", "string", "integer", "number", "boolean")


class LongPrompt(NamedTuple):
    """The beginning of a conversation, and how it may go on: each ends in an answer to learn."""

    messages: list[corpus.Message]
    tools: list[toolgen.Schema]
    endings: list[list[corpus.Message]]

    def conversations(self) -> list[corpus.Conversation]:
        """One conversation for each ending."""
        tools = self.tools or None
        return [corpus.Conversation([*self.messages, *end], tools) for end in self.endings]


@cache
def _english() -> tuple[str, ...]:
    """The interpreter's own manual."""
    return tuple(pydoc_data.topics.topics.values())


def prose(rng: Random, characters: int) -> str:
    """A stretch of English documentation, whole lines."""
    text = rng.choice(_english())
    start = text.find("\n", rng.randrange(max(1, len(text) - characters))) + 1
    return text[start : start + characters].rpartition("\n")[0].strip()


def _loud(rng: Random, said: str) -> str:
    """Some of the words in capitals or joined, as in AGENTS.md, API_KEY and readFile.

    A model that has never met capitals in a row goes on with them where an answer begins with one.
    """
    share = rng.choice((0.0, 0.02, 0.05, 0.15))

    def change(match: re.Match[str]) -> str:
        if rng.random() > share:
            return match[0]
        other = pasted.word(rng)
        made: str = rng.choice(
            (
                match[0].upper(),
                match[0].upper(),
                f"{match[0]}_{other}".upper(),
                f"{match[0].upper()}.md",
                match[0] + other.capitalize(),
                match[0].upper()[: rng.randint(1, 4)],
            )
        )
        return made

    return _WORD.sub(change, said)


def _section(rng: Random, characters: int) -> str:
    sort = rng.random()
    if sort < 0.15:
        body = pasted.rules(rng)
    elif sort < 0.35:
        body = pasted.filler(rng, characters)
    else:
        body = prose(rng, characters)
    body = _loud(rng, body)
    form = rng.random()
    if form < 0.3:
        return f"{'#' * rng.randint(1, 3)} {pasted.word(rng).capitalize()}\n{body}"
    if form < 0.6:
        tag = rng.choice(_TAGS)
        return f"<{tag}>\n{body}\n</{tag}>"
    if form < 0.8:
        return "\n".join(f"- {line.strip()}" for line in body.splitlines() if line.strip())
    return body


def text(rng: Random, characters: int) -> str:
    """Sections of rules, code and documentation, about that long together."""
    out: list[str] = []
    left = characters
    while left > 0:
        out.append(_section(rng, min(left, rng.randint(200, 3000))))
        left -= len(out[-1]) + 2
    return "\n\n".join(out)


def _value(rng: Random, depth: int) -> toolgen.Schema:
    sort = rng.random()
    made: dict[str, Any]
    if depth and sort < 0.12:
        made = {"type": "array", "items": _value(rng, depth - 1)}
    elif depth and sort < 0.24:
        made = _object(rng, depth - 1)
    elif sort < 0.34:
        made = {"type": "string", "enum": [pasted.word(rng) for _ in range(rng.randint(2, 5))]}
    else:
        made = {"type": rng.choice(_KINDS)}
    if rng.random() < 0.7:
        made["description"] = _loud(rng, prose(rng, rng.randint(40, 250)).replace("\n", " "))
    return made


def _object(rng: Random, depth: int) -> toolgen.Schema:
    names = [rng.choice((pasted.word, pasted.identifier))(rng) for _ in range(rng.randint(1, 5))]
    made: dict[str, Any] = {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": names[: rng.randint(0, len(names))],
    }
    if rng.random() < 0.5:
        made["additionalProperties"] = False
    if rng.random() < 0.3:
        made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return made


def _tool(rng: Random, characters: int) -> toolgen.Schema:
    name = rng.choice((pasted.identifier(rng), pasted.word(rng).capitalize()))
    function = {
        "name": name,
        "description": text(rng, characters),
        "parameters": _object(rng, 2),
    }
    return {"type": "function", "function": function}


def _around(rng: Random, characters: int) -> corpus.Message:
    """What clients say beside the user: the environment, reminders, rules of the repository."""
    role = rng.choice(("user", "user", "system"))
    return {"role": role, "content": _section(rng, characters)}


def long_prompt(rng: Random, characters: int, endings: int) -> LongPrompt:
    """A prompt of about that many characters.

    In most, the question comes last; in some, a long reminder stands behind it, and then there
    is one ending alone.
    """
    share = rng.uniform(0.1, 0.7)
    count = 0 if rng.random() < 0.15 else rng.randint(3, max(3, min(30, characters // 2000)))
    tools = [_tool(rng, int(characters * share / count) // 2) for _ in range(count)]
    if characters > 20_000 and count and rng.random() < 0.5:
        tools += toolgen.coding_tools(rng.randrange(1 << 30))[: rng.randint(1, 12)]
        rng.shuffle(tools)
    spent = sum(len(str(tool)) for tool in tools)
    head = f"{rng.choice(_ROLES)}\n\n{text(rng, max(500, characters - spent))}"
    messages: list[corpus.Message] = [{"role": "system", "content": head}]
    messages += [_around(rng, rng.randint(100, 3000)) for _ in range(rng.choice((0, 1, 1, 2)))]
    if rng.random() < 0.35:
        ask, answer = corpus.exchange(rng)
        messages += [user(ask), _around(rng, rng.randint(200, 7000))]
        return LongPrompt(messages, tools, [[{"role": "assistant", "content": answer}]])
    pairs = [corpus.exchange(rng) for _ in range(endings)]
    ends = [[user(ask), {"role": "assistant", "content": answer}] for ask, answer in pairs]
    return LongPrompt(messages, tools, ends)


def user(said: str) -> corpus.Message:
    """What a user says."""
    return {"role": "user", "content": said}
