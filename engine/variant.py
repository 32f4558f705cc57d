"""What a row runs on beside the base model. Plain values, known to scheduler and engine."""

from __future__ import annotations

from typing import NamedTuple

NGRAM = "ngram"  # the draft without a model: what followed the same words before


class Variant(NamedTuple):
    """The names of a row's LoRA adapter and of its draft; None: without."""

    adapter: str | None = None
    draft: str | None = None


BASE = Variant()
