"""Chooses the next token of every row of a decode step, each row in its own way.

Everything is lazy, and a row's token depends on its own logits, settings, seed and position
alone: whatever rows share the batch, the same numbers go through the same operations.
Owned by the engine thread; knows nothing of models or requests.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .params import SamplingParams
from .steering import Masks, Steering
from .uniform import fresh_seed, uniform

# The distribution is inverted in two levels. Summed up in one run, a large vocabulary's
# rare tokens would vanish in the rounding of float32.
SPAN = 256


class RowSampling:
    """What sampling keeps for one row from its first to its last token.

    ``prompt`` is what the repetition penalty counts beside the generated tokens. A seed is
    drawn where ``params`` has none; with it the row can be continued after an interruption.
    ``steering`` says what the row may choose; it too outlives an interruption.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        steering: Steering | None = None,
    ) -> None:
        self.params = params
        self.steering = steering
        self.vocab_size = vocab_size
        self.seed = fresh_seed() if params.seed is None else params.seed
        self.counts_tokens = (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )
        self.adjusts = self.counts_tokens or bool(params.logit_bias)
        self._seen = np.zeros(0, np.bool_)
        if params.repetition_penalty != 1.0:
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[np.asarray(prompt, np.int64)] = True
        # On the device from the first step on: a row that waits in a queue holds none.
        self._device: _Device | None = None

    @property
    def device(self) -> _Device:
        """The row's arrays, made by the engine thread at first use."""
        if self._device is None:
            self._device = _Device.of(self.params, self._seen, self.vocab_size)
        return self._device

    def ahead(self, tokens: Sequence[mx.array]) -> list[RowSampling]:
        """This, and what it would be after each of the proposed ``tokens`` (lazy scalars)."""
        states = [self]
        for token in tokens:
            states.append(states[-1]._after(token) if self.counts_tokens else self)
        return states

    def advance(self, accepted: RowSampling, token: mx.array) -> None:
        """Counts what was generated: all that ``accepted``, one of ``ahead``, has and a token."""
        if self.counts_tokens:
            self._device = accepted._after(token).device

    def _after(self, token: mx.array) -> RowSampling:
        device = self.device
        twin = copy.copy(self)
        twin._device = device._replace(counts=device.counts.at[token].add(1.0))
        return twin


class _Device(NamedTuple):
    """Arrays [V] float32: generated tokens by id, 1 where the prompt has an id, biases."""

    counts: mx.array
    seen: mx.array
    bias: mx.array

    @staticmethod
    def of(params: SamplingParams, seen: np.ndarray, vocab_size: int) -> _Device:
        zeros = mx.zeros((vocab_size,), mx.float32)
        bias = np.zeros(vocab_size if params.logit_bias else 0, np.float32)
        for token, value in params.logit_bias:
            bias[token] += value
        return _Device(
            counts=zeros,
            seen=mx.array(seen.astype(np.float32)) if seen.size else zeros,
            bias=mx.array(bias) if bias.size else zeros,
        )


class Sampled(NamedTuple):
    """The tokens of one step; all arrays lazy.

    ``tokens`` is [B] int32. ``asked`` are the batch indices of the rows that want
    log-probabilities; ``logprobs`` [n] has their chosen tokens', ``top`` the most likely ids
    and their log-probabilities, [n, most that any row asked for], likeliest first. They are of
    the model's own distribution, before penalties, temperature and filters.
    """

    tokens: mx.array
    logprobs: mx.array | None
    top: tuple[mx.array, mx.array] | None
    asked: tuple[int, ...]


def sample(
    logits: mx.array,
    rows: Sequence[RowSampling],
    positions: Sequence[int],
    masks: Masks | None = None,
) -> Sampled:
    """Chooses a token for each row of ``logits`` [B, V].

    ``positions`` are the absolute positions of the tokens to be chosen. Logits beyond the
    vocabulary's size are padding and are never chosen, nor is what ``masks`` leave out.
    """
    logits = _within(logits, rows)
    return _with_logprobs(logits, rows, choose_tokens(logits, rows, positions, masks))


def choose_tokens(
    logits: mx.array,
    rows: Sequence[RowSampling],
    positions: Sequence[int],
    masks: Masks | None = None,
) -> mx.array:
    """What ``sample`` chooses, [B] int32, without log-probabilities."""
    assert len(rows) == len(positions) == logits.shape[0] > 0
    logits = _within(logits, rows)
    adjusted = _masked(_adjust(logits, rows), masks)
    drawn = [i for i, row in enumerate(rows) if not row.params.greedy]
    tokens = mx.argmax(adjusted, axis=-1).astype(mx.int32) if len(drawn) < len(rows) else None
    if drawn:
        numbers = [uniform(rows[i].seed, positions[i]) for i in drawn]
        chosen = _draw(_pick(adjusted, drawn), [rows[i].params for i in drawn], numbers)
        tokens = chosen if tokens is None else _replace(tokens, drawn, chosen)
    assert tokens is not None
    return tokens


def _within(logits: mx.array, rows: Sequence[RowSampling]) -> mx.array:
    size = rows[0].vocab_size
    return logits[:, :size] if logits.shape[1] > size else logits


def describe(sampled: Sampled) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """Log-probabilities by batch index, for the rows that asked."""
    if sampled.logprobs is None:
        return {}
    chosen: Any = sampled.logprobs.tolist()
    tops: list[list[tuple[int, float]]] = [[] for _ in chosen]
    if sampled.top is not None:
        ids, values = sampled.top
        columns: Any = ids.tolist(), values.tolist()
        tops = [list(zip(*pair, strict=True)) for pair in zip(*columns, strict=True)]
    return {row: (chosen[n], tuple(tops[n])) for n, row in enumerate(sampled.asked)}


def _pick(x: mx.array, indices: Sequence[int]) -> mx.array:
    """The rows ``indices`` (ascending) of ``x``."""
    return x if len(indices) == x.shape[0] else x[mx.array(list(indices))]


def _replace(x: mx.array, indices: Sequence[int], values: mx.array) -> mx.array:
    """``x`` with ``values`` as its rows ``indices`` (ascending)."""
    if len(indices) == x.shape[0]:
        return values
    changed = mx.array(x)
    changed[mx.array(list(indices))] = values
    return changed


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), mx.float32)[:, None]


# bias and penalties


def _adjust(logits: mx.array, rows: Sequence[RowSampling]) -> mx.array:
    """Logits with biases and penalties; the given ones where no row has any."""
    members = [i for i, row in enumerate(rows) if row.adjusts]
    if not members:
        return logits
    params = [rows[i].params for i in members]
    device = [rows[i].device for i in members]
    x = _pick(logits, members).astype(mx.float32)
    x = x + mx.stack([d.bias for d in device])
    counts = mx.stack([d.counts for d in device])
    # For a row without one of the penalties, the operation below leaves its numbers as they are.
    if any(p.repetition_penalty != 1.0 for p in params):
        penalty = _column([p.repetition_penalty for p in params])
        seen = (mx.stack([d.seen for d in device]) + counts) > 0
        penalised = mx.where(x < 0, x * penalty, x / penalty)
        x = mx.where(seen, penalised, x)
    x = x - _column([p.frequency_penalty for p in params]) * counts
    x = x - _column([p.presence_penalty for p in params]) * (counts > 0)
    return _replace(logits.astype(mx.float32), members, x)


def _masked(x: mx.array, masks: Masks | None) -> mx.array:
    if masks is None:
        return x
    return _replace(x, masks.rows, mx.where(masks.allowed, _pick(x, masks.rows), -mx.inf))


# drawing


def _draw(x: mx.array, params: Sequence[SamplingParams], numbers: Sequence[float]) -> mx.array:
    """Tokens [n] by the uniform ``numbers``, from the filtered, tempered softmax of ``x``."""
    x = x.astype(mx.float32)
    # Scaled after the maximum is taken off, so that a low temperature cannot overflow.
    x = (x - x.max(axis=-1, keepdims=True)) * _column([1.0 / p.temperature for p in params])
    return _invert(mx.exp(_filter(x, params)), _column(numbers))


def _filter(x: mx.array, params: Sequence[SamplingParams]) -> mx.array:
    """``x`` [n, V], whose maxima are 0, with -inf for what top_k, top_p and min_p leave out."""
    width = x.shape[1]
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, p in enumerate(params):
        key = (p.top_k if 0 < p.top_k < width else 0, p.top_p < 1.0)
        if any(key):
            groups.setdefault(key, []).append(i)
    for (top_k, nucleus), members in groups.items():
        part = likeliest = _pick(x, members)
        if top_k:
            likeliest = mx.topk(part, top_k, axis=-1)
            part = _keep_count(part, likeliest, top_k)
        if nucleus:
            part = _keep_mass(part, likeliest, _column([params[i].top_p for i in members]))
        x = _replace(x, members, part)
    if any(p.min_p > 0.0 for p in params):
        least = _column([math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in params])
        x = mx.where(x < least, -math.inf, x)
    return x


def _keep_count(x: mx.array, likeliest: mx.array, count: int) -> mx.array:
    """Leaves ``count`` tokens a row; of equally likely ones those with the lower ids."""
    least = likeliest.min(axis=-1, keepdims=True)
    above, level = x > least, x == least
    room = count - above.sum(axis=-1, keepdims=True)
    kept = above | (level & (mx.cumsum(level.astype(mx.int32), axis=-1) <= room))
    return mx.where(kept, x, -math.inf)


def _keep_mass(x: mx.array, candidates: mx.array, top_p: mx.array) -> mx.array:
    """Leaves the likeliest tokens that together reach ``top_p``, and those as likely as these."""
    ordered = mx.sort(candidates, axis=-1)[:, ::-1]
    mass = mx.exp(ordered)
    before = mx.cumsum(mass, axis=-1, inclusive=False)
    total = before[:, -1:] + mass[:, -1:]
    kept = mx.maximum((before < top_p * total).sum(axis=-1, keepdims=True), 1)
    least = mx.take_along_axis(ordered, kept - 1, axis=-1)
    return mx.where(x < least, -math.inf, x)


def _invert(mass: mx.array, numbers: mx.array) -> mx.array:
    """The tokens [n] at which the cumulated ``mass`` [n, V] passes ``numbers`` [n, 1] of it all."""
    rows, width = mass.shape
    spans = -(-width // SPAN)
    mass = mx.pad(mass, [(0, 0), (0, spans * SPAN - width)]).reshape(rows, spans, SPAN)
    inner = mx.cumsum(mass, axis=-1)
    # Last sums of the scans, not reductions: those may add in an order that depends on the batch.
    totals = inner[:, :, -1]
    outer = mx.cumsum(totals, axis=-1)
    target = numbers * outer[:, -1:]
    span = _passing(outer, totals, target)
    before = mx.take_along_axis(mx.cumsum(totals, axis=-1, inclusive=False), span, axis=-1)
    pick = mx.broadcast_to(span[:, :, None], (rows, 1, SPAN))
    inner = mx.take_along_axis(inner, pick, axis=1)[:, 0]
    mass = mx.take_along_axis(mass, pick, axis=1)[:, 0]
    offset = _passing(inner, mass, target - before)
    return (span * SPAN + offset)[:, 0].astype(mx.int32)


def _passing(cumulated: mx.array, mass: mx.array, target: mx.array) -> mx.array:
    """The first index [n, 1] with mass where ``cumulated`` exceeds ``target``, else the last.

    Rounding may leave no sum above the target, or a step at an index without mass; a token that
    a filter took out must not be chosen even then.
    """
    width = mass.shape[-1]
    index = mx.arange(width)
    key = mx.where(cumulated > target, width - index, index - width)
    key = mx.where(mass > 0, key, -width - 1)
    return mx.argmax(key, axis=-1, keepdims=True).astype(mx.int32)


# log-probabilities


def _with_logprobs(logits: mx.array, rows: Sequence[RowSampling], tokens: mx.array) -> Sampled:
    asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    if not asked:
        return Sampled(tokens, None, None, ())
    x = _pick(logits, asked).astype(mx.float32)
    x = x - mx.logsumexp(x, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(x, _pick(tokens, asked)[:, None], axis=-1)[:, 0]
    most = min(max(rows[i].params.logprobs or 0 for i in asked), x.shape[1])
    top = None
    if most:
        ids = mx.argpartition(-x, kth=most - 1, axis=-1)[:, :most]
        values = mx.take_along_axis(x, ids, axis=-1)
        order = mx.argsort(-values, axis=-1)
        ids = mx.take_along_axis(ids, order, axis=-1).astype(mx.int32)
        top = ids, mx.take_along_axis(values, order, axis=-1)
    return Sampled(tokens, chosen, top, tuple(asked))
