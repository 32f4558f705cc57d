"""Prompts for a load test: words, prose and code made up from a seed, the same on every machine.

Knows nothing of HTTP or tokenizers. Made-up words cost a tokenizer about as much as code does.
"""

from __future__ import annotations

import random

CHARS_PER_TOKEN = 3.0  # what the text measures with byte-level BPE vocabularies

_ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr pl pr sh st th tr"
_VOWELS = "a e i o u ai ea ou ee io"
_CODAS = "n r s t l m nd st ck"
_COMMON = """
    the a of to and in is that for on with as it by from this not are when must if each or
    file test value name list call return error path line check read write user model
"""
_SYLLABLES = tuple(
    onset + vowel + coda
    for onset in _ONSETS.split()
    for vowel in _VOWELS.split()
    for coda in (*_CODAS.split(), "", "", "")
)
_WORDS = tuple(_COMMON.split())


def make_text(seed: str, chars: int) -> str:
    """``chars`` characters of paragraphs and code; equal arguments give equal text, and a
    longer text of one seed starts with the shorter one."""
    rng = random.Random(seed)
    parts: list[str] = []
    length = 0
    while length < chars:
        part = _paragraph(rng) if rng.random() < 0.6 else _function(rng)
        parts.append(part)
        length += len(part)
    return "".join(parts)[:chars]


def _word(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(_WORDS)
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3))))


def _sentence(rng: random.Random) -> str:
    words = [_word(rng) for _ in range(rng.randint(5, 14))]
    words[0] = words[0].capitalize()
    if rng.random() < 0.3:
        words[rng.randrange(len(words) - 1)] += ","
    return " ".join(words) + "."


def _paragraph(rng: random.Random) -> str:
    return " ".join(_sentence(rng) for _ in range(rng.randint(2, 5))) + "\n\n"


def _name(rng: random.Random) -> str:
    return "_".join(_word(rng) for _ in range(rng.choice((1, 1, 2))))


def _function(rng: random.Random) -> str:
    first, second = _name(rng), _name(rng)
    lines = [f"def {_name(rng)}({first}, {second}={rng.randint(0, 999)}):"]
    for _ in range(rng.randint(2, 6)):
        target, source = _name(rng), rng.choice((first, second))
        lines.append(
            rng.choice(
                (
                    f"    {target} = {_name(rng)}({source}, {rng.randint(0, 99)})",
                    f"    if {source} > {rng.randint(0, 99)}:\n        {target} += {source}",
                    f'    {target} = {source}["{_word(rng)}"]',
                    f"    # {_sentence(rng)}",
                )
            )
        )
    lines.append(f"    return {_name(rng)}({first})")
    return "\n".join(lines) + "\n\n"
