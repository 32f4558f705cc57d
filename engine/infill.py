"""Fill-in-the-middle prompts, for models whose vocabulary marks the parts of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

# What stands before the text's beginning, before its end, and where the middle is to follow.
MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


class Infill(NamedTuple):
    """The token ids of a model's three marks."""

    prefix: int
    suffix: int
    middle: int

    def prompt(
        self, lead: Sequence[int], before: Sequence[int], after: Sequence[int]
    ) -> tuple[int, ...]:
        """The prompt for what stands between two texts; ``lead`` begins every text."""
        return (*lead, self.prefix, *before, self.suffix, *after, self.middle)


def infill_of(inner: Any) -> Infill | None:
    """The marks that a tokenizer has; None where it has none."""
    vocabulary = inner.get_vocab()
    for marks in MARKS:
        if all(mark in vocabulary for mark in marks):
            return Infill(*(int(vocabulary[mark]) for mark in marks))
    return None
