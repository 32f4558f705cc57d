"""Tokenising a conversation again costs what is new in it.

An agent resends its whole conversation every turn. Text between two special tokens is tokenised
on its own by every tokenizer of the usual kinds, so the pieces can be kept and put together. They
are kept by trust domain: how long tokenising takes must not tell what others have sent.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections import OrderedDict
from typing import Any

from cache.loan import NOBODY

MOST_CHARACTERS = 1 << 25  # of text whose tokens are kept
ENTRY = 100  # characters; what keeping a piece costs beside its text
# Where tokenizers differ between a piece on its own and a piece in a text: at its edges.
SAMPLES = ("a", " b c ", "\n\nd", "", " ", "é\n", "  if x:\n\t")


class SegmentedEncoder:
    """Encodes with ``fast`` (a ``tokenizers.Tokenizer``), piece by piece, from several threads.

    Where pieces tokenise otherwise on their own, found out by a trial, whole texts are encoded.
    """

    def __init__(self, fast: Any, most_characters: int = MOST_CHARACTERS) -> None:
        self._fast = fast
        self._most = most_characters
        self._kept: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()
        self._special = _special_tokens(fast)
        names = sorted(self._special, key=len, reverse=True)
        self._border = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        if self._border is not None and not self._agrees():
            self._border = None

    @property
    def segmented(self) -> bool:
        """Whether texts are encoded piece by piece."""
        return self._border is not None

    def encode(self, text: str, domain: str = NOBODY) -> array[int]:
        """Token ids of ``text``, without what the model wants around a plain text.

        Pieces are looked for, and kept, in ``domain``.
        """
        if self._border is None:
            return self._encode(text)
        tokens = array("i")
        for i, piece in enumerate(self._border.split(text)):
            if i % 2:
                tokens.append(self._special[piece])
            elif piece:
                tokens.extend(self._piece(piece, domain))
        return tokens

    def _piece(self, text: str, domain: str) -> array[int]:
        key = domain, text
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
        made = self._encode(text)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._characters += len(text) + ENTRY
            while self._characters > self._most:
                oldest, _ = self._kept.popitem(last=False)
                self._characters -= len(oldest[1]) + ENTRY
        return made

    def _encode(self, text: str) -> array[int]:
        return array("i", encoded(self._fast, text))

    def _agrees(self) -> bool:
        """Whether pieces give what the whole text gives, around every special token."""
        for i, name in enumerate(self._special):
            first, second = SAMPLES[i % len(SAMPLES)], SAMPLES[(i + 1) % len(SAMPLES)]
            text = "".join(f"{s}{name}" for s in (first, second, *SAMPLES)) + first
            if self.encode(text) != self._encode(text):
                return False
        return True


def encoded(fast: Any, text: str, *, special: bool = False) -> list[int]:
    """Token ids of ``text``; other threads go on meanwhile, which a single ``encode`` prevents."""
    (encoding,) = fast.encode_batch_fast([text], add_special_tokens=special)
    ids: list[int] = encoding.ids
    return ids


def _special_tokens(fast: Any) -> dict[str, int]:
    """The special tokens at which a text is cut before anything else is done to it."""
    added: dict[int, Any] = fast.get_added_tokens_decoder()
    return {
        token.content: number
        for number, token in added.items()
        if token.special
        and token.content
        and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    }
