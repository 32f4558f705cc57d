"""Attention over lent blocks: the cache objects and the one function that mlx-lm models call.

Shared-prefix decoding follows Hydragen (Juravsky et al., 2024) and ChunkAttention (Ye et al.,
2024): all borrowers of a block are one query matrix, and partial results over blocks and tails
are merged by their log-sum-exp as in FlashDecoding. Owned by the engine thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx_lm.models.base as base

NOTHING = -1e30  # a score that no softmax sees, finite so that differences stay numbers


class Plan(Protocol):
    """How one step reads and writes the KV of its rows."""

    @property
    def offset(self) -> mx.array | int:
        """Position of each row's first new token: [B], or one number for a single row."""
        ...

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """Stores the step's keys and values [B, heads, L, dim] of one layer."""
        ...

    def attend(
        self, layer: int, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Attention output [B, query heads, L, value dim] for ``queries``, after ``write``."""
        ...


class LentLayer:
    """Stands where mlx-lm expects a layer's KV cache; forwards to the step's plan."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.plan: Plan | None = None

    @property
    def offset(self) -> mx.array | int:
        """What the model's rotary embedding adds to positions."""
        assert self.plan is not None
        return self.plan.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Stores the new keys and values; the models only pass the result on to attention."""
        assert self.plan is not None
        self.plan.write(self.index, keys, values)
        return keys, values

    def make_mask(self, *_: object, **__: object) -> None:
        """No mask: the plan itself knows which tokens a row may see."""


def attention(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    """mlx-lm's ``scaled_dot_product_attention``, for lent layers by their plan."""
    if isinstance(cache, LentLayer):
        assert cache.plan is not None
        return cache.plan.attend(cache.index, queries, scale, sinks)
    return ORIGINAL(queries, keys, values, cache, scale=scale, mask=mask, sinks=sinks)


ORIGINAL: Callable[..., mx.array] = base.scaled_dot_product_attention


def install() -> None:
    """Puts ``attention`` in place of mlx-lm's function in every model module loaded so far."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models."):
            for attribute, value in list(vars(module).items()):
                if value is ORIGINAL:
                    setattr(module, attribute, attention)


class Partial(NamedTuple):
    """Attention of n rows over some of their tokens, not yet normalised, in float32.

    ``top`` [n, heads, r, 1] is the largest score, ``mass`` [n, heads, r, 1] the sum of the
    exponentials of scores less ``top``, ``sum`` [n, heads, r, dim] the same of the values.
    """

    top: mx.array
    mass: mx.array
    sum: mx.array


def partial(
    queries: mx.array, keys: mx.array, values: mx.array, bias: mx.array | None = None
) -> Partial:
    """Attention of scaled ``queries`` [n, heads, r, dim] over ``keys`` [n, heads, T, dim].

    ``bias`` (broadcast to [n, heads, r, T]) is added to the scores.
    """
    scores = (queries @ keys.swapaxes(-1, -2)).astype(mx.float32)
    if bias is not None:
        scores = scores + bias
    top = scores.max(-1, keepdims=True)
    weights = mx.exp(scores - top)
    mass = weights.sum(-1, keepdims=True)
    return Partial(top, mass, (weights.astype(values.dtype) @ values).astype(mx.float32))


def shared_partial(queries: mx.array, keys: mx.array, values: mx.array) -> Partial:
    """``partial`` of n rows over the same ``keys`` [1, heads, T, dim], read once for all."""
    n, heads, r, dim = queries.shape
    if n == 1:
        return partial(queries, keys, values)
    stacked = queries.transpose(1, 0, 2, 3).reshape(1, heads, n * r, dim)
    flat = partial(stacked, keys, values)
    return Partial(*(x.reshape(heads, n, r, -1).transpose(1, 0, 2, 3) for x in flat))


def nothing(like: Partial, n: int) -> Partial:
    """The partial result of ``n`` rows over no tokens."""
    shapes = ((n, *x.shape[1:]) for x in like)
    top, mass, total = shapes
    return Partial(mx.full(top, NOTHING), mx.zeros(mass), mx.zeros(total))


def stack(parts: Sequence[Partial]) -> Partial:
    """The rows of ``parts`` one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Partial(*(mx.concatenate(list(xs), axis=0) for xs in zip(*parts, strict=True)))


def merge(parts: Sequence[Partial], sinks: mx.array | None) -> mx.array:
    """The attention of the same rows over all of ``parts``: [n, heads, r, dim], float32.

    ``sinks`` [heads, r] take part in the normalisation and add no value.
    """
    top = parts[0].top
    for part in parts[1:]:
        top = mx.maximum(top, part.top)
    if sinks is not None:
        sink = sinks.astype(mx.float32)[None, :, :, None]
        top = mx.maximum(top, sink)
        mass = mx.exp(sink - top)
    else:
        mass = mx.array(0.0)
    total: mx.array | None = None
    for part in parts:
        weight = mx.exp(part.top - top)
        mass = mass + weight * part.mass
        total = weight * part.sum if total is None else total + weight * part.sum
    assert total is not None
    return total / mass
