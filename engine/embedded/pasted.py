"""Text as people and agents paste it: code, logs, prose, rules. Only filler; never the answer."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path
from random import Random

from engine.embedded import knowledge

_ONSETS = knowledge.words("b br c ch d dr f fl g gr h j k kl l m n p pl qu r s sh st t tr v w z")
_VOWELS = knowledge.words("a e i o u ai ea io ou")
_CODAS = ("", "", "", "n", "r", "s", "l", "t", "m", "ck", "nd", "x")
_RULES = (
    "Answer in short and clear sentences.",
    "Use the tools when they fit the request, and never invent a result.",
    "Read a file before you change it.",
    "Run the tests after every change and report what failed.",
    "Do not delete files that the user did not name.",
    "Prefer small functions with clear names.",
    "Ask when a request can be read in two ways.",
    "Never print secrets, keys or passwords.",
    "Keep the style of the code that is already there.",
    "When the task is done, say so in one sentence.",
    "Write commit messages in the imperative.",
    "Use absolute paths for all files.",
    "If a command fails, look at its output before you try again.",
    "Be polite, and do not repeat the question.",
)
_STDLIB = knowledge.words(
    """
    argparse ast bdb cmd codecs configparser copy csv dataclasses difflib doctest enum
    fnmatch fractions functools glob gzip heapq imaplib inspect ipaddress locale mailbox
    mimetypes pathlib pickle pprint queue random sched shutil smtplib socket statistics
    string subprocess tarfile tempfile textwrap threading timeit traceback turtle typing
    uuid webbrowser zipfile
    """
)


def made_up(rng: Random) -> str:
    """A pronounceable lower-case word that is in no dictionary."""
    syllables = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    )
    return "".join(syllables)


def word(rng: Random) -> str:
    """A noun, an adjective or a made-up word."""
    table = rng.choice((knowledge.NOUNS, knowledge.ADJECTIVES, None))
    return rng.choice(table) if table else made_up(rng)


def file_path(rng: Random) -> str:
    """A relative or absolute path with an extension."""
    parts = [rng.choice(("src", "app", "lib", "docs", "tests", "/home/dev", "/srv", word(rng)))]
    parts += [word(rng) for _ in range(rng.randrange(3))]
    suffix = rng.choice(("py", "py", "md", "json", "txt", "js", "ts", "toml", "csv"))
    return "/".join(parts) + "." + suffix


def identifier(rng: Random) -> str:
    """A snake-case name of two words."""
    return f"{rng.choice(knowledge.VERBS)}_{word(rng)}"


def rules(rng: Random) -> str:
    """A system prompt's list of rules, in random order."""
    chosen = rng.sample(_RULES, rng.randint(2, len(_RULES)))
    style = rng.choice(("- {1}", "{0}. {1}", "* {1}", "{1}"))
    return "\n".join(style.format(i, rule) for i, rule in enumerate(chosen, 1))


def code(rng: Random, functions: int) -> str:
    """Python-like functions around random names."""
    out = []
    for _ in range(functions):
        name, a, b, c = identifier(rng), word(rng), word(rng), word(rng)
        out.append(
            f"def {name}({a}, {b}={rng.randrange(100)}):\n"
            f'    """{rng.choice(knowledge.VERBS).capitalize()} the {word(rng)} {c}."""\n'
            f"    {c} = {a}.{identifier(rng)}({b})\n"
            f"    if {c} > {rng.randrange(1000)}:\n        return {c}\n    return {b}\n"
        )
    return "\n".join(out)


def log(rng: Random, lines: int) -> str:
    """Lines of a service's log."""
    return "\n".join(
        f"2025-0{rng.randint(1, 9)}-{rng.randint(10, 28)} {rng.randint(10, 23)}:"
        f"{rng.randint(10, 59)}:{rng.randint(10, 59)} {rng.choice(('INFO', 'WARN', 'ERROR'))} "
        f"{word(rng)}: {rng.choice(knowledge.VERBS)} {word(rng)} {rng.randrange(10000)}"
        for _ in range(lines)
    )


def prose(rng: Random, sentences: int) -> str:
    """Explanations in random order."""
    texts = list(knowledge.TOPICS.values())
    return " ".join(rng.choice(texts) for _ in range(sentences))


@cache
def _library() -> tuple[str, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [root / f"{name}.py" for name in _STDLIB]
    return tuple(file.read_text(encoding="utf-8") for file in files if file.is_file())


def library(rng: Random, characters: int) -> str:
    """A stretch of the running interpreter's standard library, whole lines."""
    texts = _library()
    if not texts:
        return code(rng, max(1, characters // 150))
    text = rng.choice(texts)
    start = text.find("\n", rng.randrange(max(1, len(text) - characters))) + 1
    return text[start : start + characters].rpartition("\n")[0]


def filler(rng: Random, characters: int) -> str:
    """About that many characters of pasted material of one or more sorts."""
    out: list[str] = []
    left = characters
    while left > 0:
        size = min(left, rng.randint(200, 3000))
        sort = rng.choice(("library", "library", "code", "log", "prose"))
        if sort == "library":
            piece = library(rng, size)
        elif sort == "code":
            piece = code(rng, size // 150 + 1)
        elif sort == "log":
            piece = log(rng, size // 50 + 1)
        else:
            piece = prose(rng, size // 150 + 1)
        out.append(f"```\n{piece}\n```" if sort != "prose" and rng.random() < 0.5 else piece)
        left -= len(piece) + 10
    return "\n\n".join(out)
