"""Grammars that replies must follow: compiled once, and for every row a matcher of its own.

Compiling happens on worker threads and touches no arrays; a matcher is its row's, on the engine
thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from .grammar_trial import LIMITS, fault

MOST_GRAMMARS = 256
MOST_SOURCE_BYTES = 16 << 20  # of all kept grammars


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
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._bytes = 0

    @property
    def ready(self) -> bool:
        """Whether ``compile`` can begin at once."""
        return self._tokenizer is not None or self._fast is None

    def kept(self, source: str) -> Grammar | None:
        """The compiled ``source``, if it has lately been compiled."""
        with self._lock:
            grammar = self._kept.get(source)
            if grammar is None:
                self.misses += 1
            else:
                self.hits += 1
                self._kept.move_to_end(source)
            return grammar

    def compile(self, source: str) -> Grammar:
        """Compiles a Lark grammar, in a process apart first. Raises GrammarError."""
        tokenizer = self.tokenizer()
        if wrong := fault(source):
            raise GrammarError(_line(wrong))
        try:
            matcher = LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)
            if not matcher.is_error():
                matcher.compute_bitmask()
        except (ValueError, RuntimeError) as error:
            raise GrammarError(_line(str(error))) from error
        if matcher.is_error():
            raise GrammarError(_line(matcher.get_error()))
        grammar = Grammar(matcher, tokenizer.vocab_size, self._eos)
        self._keep(source, grammar)
        return grammar

    def tokenizer(self) -> LLTokenizer:
        """The tokens as the grammars see them; takes seconds at first use. Raises GrammarError."""
        if self._fast is None:
            raise GrammarError("this model's tokenizer cannot be used with grammars")
        with self._reading:
            if self._tokenizer is None:
                self._tokenizer = _read(self._fast, sorted(self._eos))
            return self._tokenizer

    def _keep(self, source: str, grammar: Grammar) -> None:
        with self._lock:
            if source not in self._kept:
                self._bytes += len(source)
            self._kept[source] = grammar
            while len(self._kept) > self._most or self._bytes > MOST_SOURCE_BYTES:
                old, _ = self._kept.popitem(last=False)
                self._bytes -= len(old)


def _read(fast: Any, eos: list[int]) -> LLTokenizer:
    # A copy: its owner pads and truncates as it likes.
    copy = type(fast).from_str(fast.to_str())
    copy.no_padding()
    copy.no_truncation()
    try:
        return LLTokenizer(copy.to_str(), eos_token=eos)
    except ValueError as error:
        raise GrammarError("this model's tokenizer cannot be used with grammars") from error


def _line(text: str) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(text.split())[:300]
