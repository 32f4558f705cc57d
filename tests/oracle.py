"""What ``mlx_lm`` replies to a prompt, cold and alone: the measure of every other reply.

Knows nothing of our engine. An instance belongs to the thread that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache


class Reply(NamedTuple):
    """A greedy reply."""

    tokens: list[int]
    gaps: list[float]  # by how much (in nats) each token was preferred to the second best


class Verdict(NamedTuple):
    """How a reply relates to the cold one."""

    kind: Literal["same", "tie", "different"]
    position: int  # of the first difference; the length when there is none


class Oracle:
    """A model directory's model, with an adapter or without, run by ``mlx_lm`` alone."""

    def __init__(self, path: Path, adapter: Path | None = None):
        self.model, self.tokenizer = mlx_lm.load(
            str(path), adapter_path=None if adapter is None else str(adapter)
        )

    def cold(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        stop: frozenset[int] = frozenset(),
        piece: int = 2048,
    ) -> Reply:
        """Greedy tokens after ``prompt`` (not empty), up to and including a stop token.

        The prompt is prefilled in pieces of ``piece`` tokens, all but its last token.
        """
        reply = Reply([], [])
        steps = generate_step(
            mx.array(list(prompt)),
            self.model,
            max_tokens=max_tokens,
            prompt_cache=make_prompt_cache(self.model),
            prefill_step_size=piece,
        )
        for token, logprobs in steps:
            second, best = sorted(mx.topk(logprobs, 2).tolist())
            reply.tokens.append(int(token))
            reply.gaps.append(best - second)
            if int(token) in stop:
                break
        return reply


def compare(tokens: Sequence[int], cold: Reply, tie: float = 1e-3) -> Verdict:
    """Whether ``tokens`` are the cold reply's; a first difference where two candidates were
    within ``tie`` nats of each other is a tie, which rounding decides."""
    for position, (ours, theirs) in enumerate(zip(tokens, cold.tokens, strict=False)):
        if ours != theirs:
            return Verdict("tie" if cold.gaps[position] < tie else "different", position)
    shorter = min(len(tokens), len(cold.tokens))
    return Verdict("same" if len(tokens) == len(cold.tokens) else "different", shorter)
