"""One request as the scheduler sees it: tokens in, limits, sampling; no text, no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.params import SamplingParams
from engine.variant import BASE, Variant


@dataclass(frozen=True, slots=True)
class Request:
    """An accepted request.

    ``prompt`` holds at least one token id, all inside the vocabulary. ``max_tokens`` is at
    least 1 and fits the context. ``stop_token_ids`` end the reply (normally the model's
    end-of-sequence ids). ``boundaries`` are prompt lengths at which layers that cannot be
    trimmed keep a snapshot (for instance the end of the system prompt), ascending. ``variant``
    names an adapter and a draft that the engine knows. ``model`` is the base model's name, which
    tells the models of one engine thread apart.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_token_ids: frozenset[int] = frozenset()
    boundaries: tuple[int, ...] = ()
    tenant: str = "default"
    variant: Variant = BASE
    model: str = ""
