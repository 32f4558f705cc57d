"""What an engine is started with. Knows nothing of MLX, so that options are read without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .variant import NGRAM

ADAPTER_SLOTS = 64  # adapters in memory at once
NUM_DRAFT_TOKENS = 4  # proposed for a row at once, at most


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to load and how; ``kv_memory`` in bytes, None: what the device recommends.

    ``draft_model`` is a directory or repository, "ngram" for prompt lookup, or None.
    """

    model: str
    kv_memory: int | None = None
    prefix_cache: bool = True
    dtype: str | None = None
    trust_remote_code: bool = False
    max_context: int | None = None
    adapter_slots: int = ADAPTER_SLOTS
    draft_model: str | None = None
    draft_name: str | None = None
    num_draft_tokens: int = NUM_DRAFT_TOKENS


class Drafts(NamedTuple):
    """The drafts that requests may name, the first one by default.

    ``off`` says why there are none, where some were asked for.
    """

    names: tuple[str, ...] = ()
    off: str | None = None


def offered(model: str | None, name: str | None) -> tuple[str, ...]:
    """The names under which requests choose a draft, where ``model`` was asked for."""
    if model is None:
        return ()
    return (NGRAM,) if model == NGRAM or name is None else (name, NGRAM)
