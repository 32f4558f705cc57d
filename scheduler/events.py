"""What a request's stream carries: tokens, then exactly one terminal event."""

from __future__ import annotations

from typing import Literal, NamedTuple

UNFIT = "The prompt does not fit into the KV memory."
UNFOLLOWED = "The grammar became too costly to follow."

FinishReason = Literal["stop", "length", "abort", "error"]


class TokenLogprob(NamedTuple):
    """Log-probability (natural) of the chosen token and of the best alternatives."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Token(NamedTuple):
    """One generated token; ``logprob`` is None unless the request asked for it."""

    request_id: str
    token: int
    logprob: TokenLogprob | None = None


class Finished(NamedTuple):
    """The terminal event. ``cached_tokens`` were reused; the rest of the prompt was computed.

    A stop token itself is not delivered as a Token but is counted in ``completion_tokens``.
    ``message`` is set for ``error`` only and is safe to show to a client.
    """

    request_id: str
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    message: str | None = None


Event = Token | Finished
