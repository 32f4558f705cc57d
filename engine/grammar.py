"""Grammars that replies must follow: compiled once, and for every row a matcher of its own.

Compiling happens on worker threads and touches no arrays; a matcher is its row's, on the engine
thread.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from .grammar_trial import LIMITS, TRIALS, Verdict

MOST_GRAMMARS = 256
MOST_BYTES = 256 << 20  # of all kept grammars
MOST_VERDICTS = 1024


class GrammarError(ValueError):
    """A grammar that cannot be compiled; the text may be shown to the client."""


class Grammar:
    """A compiled grammar for the tokens of one tokenizer.

    ``vocab_size`` is that of its masks; ``eos`` are the tokens that may end a reply.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos: frozenset[int]) -> None:
        self.vocab_size = vocab_size
        self.eos = eos
        self._matcher = matcher

    def matcher(self) -> LLMatcher:
        """One at the grammar's beginning."""
        return self._matcher.deep_copy()


class Grammars:
    """Compiles grammars for a tokenizer and keeps those used last. Any thread may ask.

    ``fast`` is the tokenizers library's object, None where the model has none.
    """

    def __init__(self, fast: Any, eos: Iterable[int], most: int = MOST_GRAMMARS) -> None:
        self.hits = 0
        self.misses = 0
        self._fast = fast
        self._most = most
        self._eos = frozenset(eos)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, tuple[Grammar, int]] = OrderedDict()
        self._bytes = 0
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Whether ``compile`` can begin at once."""
        return self._tokenizer is not None or self._fast is None

    def kept(self, source: str) -> Grammar | None:
        """The compiled ``source``, if it has lately been compiled."""
        with self._lock:
            found = self._kept.get(source)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(source)
            return found[0]

    def check(self, source: str) -> Verdict:
        """Tries a Lark grammar in a process apart. Raises GrammarError."""
        key = hashlib.blake2b(source.encode(), digest_size=16).digest()
        with self._lock:
            verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = TRIALS.verdict(source)
            with self._lock:
                if verdict.final:
                    self._verdicts[key] = verdict
                while len(self._verdicts) > MOST_VERDICTS:
                    self._verdicts.popitem(last=False)
        if verdict.wrong:
            raise GrammarError(_line(verdict.wrong))
        return verdict

    def compile(self, source: str) -> Grammar:
        """Compiles a Lark grammar that passes ``check``. Raises GrammarError."""
        verdict = self.check(source)
        tokenizer = self.tokenizer()
        with self._lock:
            found = self._kept.get(source)  # another thread may just have compiled it
        if found is not None:
            return found[0]
        try:
            matcher = LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)
            if not matcher.is_error():
                matcher.compute_bitmask()
        except (ValueError, RuntimeError) as error:
            raise GrammarError(_line(str(error))) from error
        if matcher.is_error():
            raise GrammarError(_line(matcher.get_error()))
        grammar = Grammar(matcher, tokenizer.vocab_size, self._eos)
        self._keep(source, grammar, len(source) + verdict.nbytes)
        return grammar

    def tokenizer(self) -> LLTokenizer:
        """The tokens as the grammars see them; takes seconds at first use. Raises GrammarError."""
        if self._fast is None:
            raise GrammarError("this model's tokenizer cannot be used with grammars")
        with self._reading:
            if self._tokenizer is None:
                self._tokenizer = _read(self._fast, sorted(self._eos))
            return self._tokenizer

    def _keep(self, source: str, grammar: Grammar, size: int) -> None:
        with self._lock:
            _, before = self._kept.pop(source, (None, 0))
            self._kept[source] = grammar, size
            self._bytes += size - before
            while len(self._kept) > self._most or self._bytes > MOST_BYTES:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed


def _read(fast: Any, eos: list[int]) -> LLTokenizer:
    # A copy: its owner pads and truncates as it likes.
    copy = type(fast).from_str(fast.to_str())
    copy.no_padding()
    copy.no_truncation()
    described = json.loads(copy.to_str())
    for token in described.get("added_tokens") or ():
        # Markers of thoughts and calls must not come inside a text; a grammar names their tokens.
        token["special"] = token["special"] or bool(token["content"].strip())
    try:
        return LLTokenizer(json.dumps(described), eos_token=eos)
    except ValueError as error:
        raise GrammarError("this model's tokenizer cannot be used with grammars") from error


def _line(text: str) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(text.split())[:300]
