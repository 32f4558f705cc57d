"""Draws from known logits, and what they must be distributed like."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from engine.params import SamplingParams
from engine.sampling import RowSampling, Sampled, sample

GREEDY = SamplingParams(temperature=0.0)
# The chi-square quantile of 1 - 1e-6 by the approximation of Wilson and Hilferty.
Z = 4.753


def commit(rows: list[RowSampling], tokens: mx.array) -> None:
    """Counts what a step without proposals has chosen."""
    for i, row in enumerate(rows):
        row.advance(row, tokens[i])


def logits_of(seed: int, rows: int, width: int, spread: float = 2.0) -> mx.array:
    values = np.random.default_rng(seed).normal(0.0, spread, (rows, width))
    return mx.array(values.astype(np.float32))


def run(
    logits: mx.array,
    params: list[SamplingParams],
    positions: list[int] | None = None,
    prompt: list[int] | None = None,
) -> Sampled:
    rows = [RowSampling(p, prompt or [0], logits.shape[1]) for p in params]
    return sample(logits, rows, positions or [7] * len(rows))


def tokens_of(logits: mx.array, params: list[SamplingParams], **more) -> list[int]:
    tokens = run(logits, params, **more).tokens
    assert tokens.dtype == mx.int32
    assert tokens.shape == (len(params),)
    return tokens.tolist()


def draw_many(logits: mx.array, params: SamplingParams, count: int) -> np.ndarray:
    """Frequencies [V] of the tokens drawn at ``count`` positions of one row."""
    width = logits.shape[-1]
    drawn = []
    for start in range(0, count, 500):
        positions = list(range(start, min(start + 500, count)))
        wide = mx.broadcast_to(logits.reshape(1, width), (len(positions), width))
        drawn += tokens_of(wide, [params] * len(positions), positions=positions)
    return np.bincount(drawn, minlength=width)


def expected(logits: mx.array, params: SamplingParams) -> np.ndarray:
    """Probabilities [V] by mlx-lm's filters, each on the renormalised result of the last."""
    x = logits.reshape(1, -1) / params.temperature
    if params.top_k:
        x = apply_top_k(mx.log(mx.softmax(x, axis=-1)), params.top_k)
    if params.top_p < 1:
        x = apply_top_p(mx.log(mx.softmax(x, axis=-1)), params.top_p)
    if params.min_p:
        x = apply_min_p(mx.log(mx.softmax(x, axis=-1)), params.min_p)
    return np.array(mx.softmax(x, axis=-1))[0].astype(np.float64)


def assert_distributed(counts: np.ndarray, probabilities: np.ndarray) -> None:
    assert not counts[probabilities == 0].any(), "a filtered token was drawn"
    total = counts.sum()
    order = np.argsort(probabilities)[::-1]
    wanted = probabilities[order] * total
    common = wanted >= 5
    # All rare tokens together make one more cell.
    observed = np.append(counts[order][common], counts[order][~common].sum())
    wanted = np.append(wanted[common], wanted[~common].sum())
    observed, wanted = observed[wanted > 1e-9], wanted[wanted > 1e-9]
    degrees = len(wanted) - 1
    if not degrees:
        return
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    spread = 2 / (9 * degrees)
    assert statistic < degrees * (1 - spread + Z * spread**0.5) ** 3
