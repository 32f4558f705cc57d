"""What the clients of a scenario say, which follows from its seed alone."""

from __future__ import annotations

import functools
import random

from .bench_scenario import Group, Length, Scenario
from .bench_text import CHARS_PER_TOKEN, make_text


def system_prompt(scenario: Scenario, group: Group, conversation: int) -> str:
    """The system prompt of a conversation; empty where its group has none."""
    prompts = group.system_prompts
    number = conversation % prompts if prompts else f"of {group.name} {conversation}"
    seed = f"{scenario.seed} system {group.prompt or group.name} {number}"
    length = int(group.system_tokens * CHARS_PER_TOKEN)
    return _shared(seed, length) if prompts else make_text(seed, length)


def question(scenario: Scenario, group: Group, conversation: int, turn: int) -> str:
    """What a client says in the ``turn``-th turn of a conversation, both from 0."""
    seed = f"{scenario.seed} {group.name} {conversation} turn {turn}"
    chars = int(_length(group.user_tokens, seed) * CHARS_PER_TOKEN)
    return f"{group.name} {conversation}: {make_text(seed, chars)}"


def reply_tokens(scenario: Scenario, group: Group, conversation: int, turn: int) -> int:
    """How long the reply to that may be."""
    return _length(group.max_tokens, f"{scenario.seed} {group.name} {conversation} reply {turn}")


def _length(length: Length, seed: str) -> int:
    return length if isinstance(length, int) else random.Random(seed).randint(*length)


@functools.lru_cache(maxsize=64)
def _shared(seed: str, chars: int) -> str:
    return make_text(seed, chars)
