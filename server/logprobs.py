"""Log-probabilities in the shapes of the two OpenAI dialects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine.tokenizer import Tokenizer
from scheduler.events import Token

LEAST = -9999.0  # JSON has no infinity


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """The ``logprobs`` of a chat choice or chunk."""
    return {"content": [_entry(tokenizer, t) for t in tokens], "refusal": None}


def _entry(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    assert token.logprob is not None
    entry = _one(tokenizer, token.token, token.logprob.logprob)
    entry["top_logprobs"] = [_one(tokenizer, t, lp) for t, lp in token.logprob.top]
    return entry


def _one(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token),
        "logprob": max(logprob, LEAST),
        "bytes": tokenizer.token_bytes(token),
    }


def text_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[Token], offset: int
) -> tuple[dict[str, Any], int]:
    """The ``logprobs`` of a text choice or chunk whose text begins at ``offset`` characters,
    and the offset after it."""
    texts, values, tops, offsets = [], [], [], []
    for token in tokens:
        assert token.logprob is not None
        text = tokenizer.token_text(token.token)
        texts.append(text)
        values.append(max(token.logprob.logprob, LEAST))
        tops.append(_by_text(tokenizer, token.logprob.top))
        offsets.append(offset)
        offset += len(text)
    shape = {
        "tokens": texts,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }
    return shape, offset


def _by_text(tokenizer: Tokenizer, top: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Where two tokens have one text, the likelier one stands for both."""
    best: dict[str, float] = {}
    for token, logprob in top:
        text = tokenizer.token_text(token)
        best[text] = max(best.get(text, LEAST), logprob)
    return best
