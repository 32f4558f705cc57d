"""What a row may say next: a grammar for its answer, a limit for its thoughts.

Masks are computed on the host, by row and position, and become one array for the step. Rows that
nothing constrains have none. Owned by the engine thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from .grammar import Grammar
from .thoughts import Thinking, Thoughts

log = logging.getLogger("commons.engine")

Mask = NDArray[np.int32]
"""One bit for each token id, set where it may come."""

End = Literal["stop", "error"]


class Constraint(NamedTuple):
    """What a request's reply must keep to.

    ``grammar`` is for the answer, which begins where a thought ends. ``budget`` bounds the tokens
    of its thoughts. ``barred`` tokens may not come inside a thought that an answer is to follow.
    """

    grammar: Grammar | None = None
    thoughts: Thoughts | None = None
    budget: int | None = None
    barred: frozenset[int] = frozenset()


class Masks(NamedTuple):
    """What may come at some positions of a step: ``allowed`` [n, V] for its ``rows``, ascending."""

    rows: list[int]
    allowed: mx.array


class Steering:
    """Follows one reply through its constraint.

    ``end`` tells that the reply cannot go on: the grammar is at its end, or has failed.
    ``log_context`` is what the log line about a failure carries.
    """

    def __init__(
        self,
        constraint: Constraint,
        vocab_size: int,
        log_context: Mapping[str, str] | None = None,
    ) -> None:
        self.end: End | None = None
        self._log_context = log_context
        self._grammar = constraint.grammar
        self._barred = constraint.barred
        self._vocab_size = vocab_size
        self._thinking: Thinking | None = None
        if constraint.thoughts is not None:
            self._thinking = Thinking.of(constraint.thoughts, constraint.budget)
        self._matcher: LLMatcher | None = None

    @property
    def words(self) -> int:
        """Length of a mask."""
        known = 0 if self._grammar is None else self._grammar.vocab_size
        return -(-max(known, self._vocab_size) // 32)

    def permitted(self, guesses: Sequence[int]) -> int:
        """How many of ``guesses``, from the first on, may come and do not end the reply."""
        thinking, count = self._thinking, 0
        while count < len(guesses) and self._thinks(thinking, guesses[count]):
            assert thinking is not None
            if not self._may_think(thinking, guesses[count]):
                return count
            thinking, count = thinking.after(guesses[count]), count + 1
        if self._grammar is None:
            return len(guesses)
        answer = list(guesses[count:])
        ends = (i for i, token in enumerate(answer) if token in self._grammar.eos)
        answer = answer[: next(ends, len(answer))]
        return count + self.matcher.validate_tokens(answer) if answer else count

    def masks(self, guesses: Sequence[int]) -> list[Mask | None]:
        """What may come first, and after each of ``guesses``, which are permitted."""
        thinking, consumed = self._thinking, 0
        found = [self._mask(thinking)]
        for token in guesses:
            if self._grammar is not None and not self._thinks(thinking, token):
                self.matcher.consume_token(token)
                consumed += 1
            thinking = self._next(thinking, token)
            found.append(self._mask(thinking))
        if consumed and self.end is None:
            self.matcher.rollback(consumed)
        return found

    def advance(self, tokens: Sequence[int]) -> int:
        """Follows generated tokens; how many of them there are up to the reply's end."""
        for count, token in enumerate(tokens):
            thought = self._thinks(self._thinking, token)
            self._thinking = self._next(self._thinking, token)
            if self.end == "stop":
                return count
            if thought or self._grammar is None or self.end == "error":
                continue
            if token in self._grammar.eos:
                self.end = "stop"
            elif not self.matcher.consume_token(token):
                self.end = "error"
            elif self.matcher.is_stopped():
                self.end = "error" if self.matcher.is_error() else "stop"
        return len(tokens)

    @property
    def matcher(self) -> LLMatcher:
        """The row's own, made at first use: a row that waits in a queue has none."""
        if self._matcher is None:
            assert self._grammar is not None
            self._matcher = self._grammar.matcher()
        return self._matcher

    def _thinks(self, thinking: Thinking | None, token: int) -> bool:
        """Whether ``token`` belongs to a thought, or to none that a grammar is about."""
        if thinking is None:
            return False
        if thinking.phase == "opening":
            return thinking.thoughts.start[:1] == (token,)
        return thinking.phase == "inside"

    def _next(self, thinking: Thinking | None, token: int) -> Thinking | None:
        # What a grammar is about may hold a marker that means nothing.
        if thinking is None or (self._grammar is not None and thinking.phase == "outside"):
            return thinking
        return thinking.after(token)

    def _may_think(self, thinking: Thinking, token: int) -> bool:
        if thinking.forced:
            return token == thinking.forced[0]
        return self._grammar is None or token not in self._barred

    def _mask(self, thinking: Thinking | None) -> Mask | None:
        if thinking is not None and thinking.forced:
            return self._only(thinking.forced[0])
        if self._grammar is None:
            return None
        if thinking is not None and thinking.phase == "inside":
            return self._all_but(self._barred)
        assert self._grammar is not None
        mask = np.zeros(self.words, np.int32)
        # A model may have more tokens than its tokenizer, whose mask must have its very length.
        known = -(-self._grammar.vocab_size // 32)
        self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask[:known].nbytes)
        if self.matcher.is_error() or not mask.any():
            error = self.matcher.get_error()[:500]
            log.warning("a grammar failed: %s", error, extra=self._log_context)
            self.end = "error"
            return None
        if thinking is not None and thinking.phase == "opening":
            _put(mask, thinking.thoughts.start[0], True)
        return mask

    def _only(self, token: int) -> Mask:
        mask = np.zeros(self.words, np.int32)
        _put(mask, token, True)
        return mask

    def _all_but(self, tokens: frozenset[int]) -> Mask:
        mask = np.full(self.words, -1, np.int32)
        for token in tokens:
            _put(mask, token, False)
        return mask


def _put(mask: Mask, token: int, may: bool) -> None:
    bits = mask.view(np.uint32)
    bit = np.uint32(1 << token % 32)
    bits[token // 32] = bits[token // 32] | bit if may else bits[token // 32] & ~bit


def joined(masks: Sequence[Mask | None], vocab_size: int) -> Masks | None:
    """The masks of a step's positions for the first ``vocab_size`` tokens."""
    rows = [i for i, mask in enumerate(masks) if mask is not None]
    if not rows:
        return None
    # Rows of one model have masks of one length, but for those that have no grammar.
    size = -(-vocab_size // 32)
    stacked = np.stack([mask[:size] for mask in masks if mask is not None])
    bits = np.unpackbits(stacked.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return Masks(rows, mx.array(bits.view(np.bool_)))
