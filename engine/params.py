"""How one request wants its tokens chosen; plain values, checked at the HTTP edge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Per-request sampling settings; every field is already range-checked.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch a filter off.
    ``seed`` None draws a fresh one. Presence and frequency penalties count generated tokens,
    ``repetition_penalty`` counts prompt and generated tokens. ``logit_bias`` pairs token ids
    with a value added to their logit. ``logprobs`` is None for none, else how many
    alternatives to report beside the chosen token (0 to 20).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0
