"""Attention and SwiGLU for training on CPUs, where MLX computes `exp` one number at a time.

A power by squaring stands in for it, at a fraction of the time and near enough to train with."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx_lm.models import qwen3

exact_attention = qwen3.scaled_dot_product_attention
_SQUARINGS = 10
_FENV_BYTES, _MXCSR_AT = 32, 28  # of glibc's fenv_t on x86-64
_FLUSH = 0x8040  # denormal results become zero, and denormal operands count as zero


def flush_denormals() -> None:
    """Makes the threads that are started from now on treat the tiniest numbers as zero.

    Once attention is sure of itself, its products are full of them, and x86 takes a hundred
    times as long for each. Does nothing on other machines.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return
    libm = ctypes.CDLL("libm.so.6")
    state = ctypes.create_string_buffer(_FENV_BYTES)
    libm.fegetenv(state)
    control = int.from_bytes(state.raw[_MXCSR_AT:], "little") | _FLUSH
    libm.fesetenv(state.raw[:_MXCSR_AT] + control.to_bytes(4, "little"))


def _power(x: mx.array) -> mx.array:
    """e**x for x <= 0, as (1 + x/n)**n."""
    y = mx.maximum(x * 0.5**_SQUARINGS + 1, 0)
    for _ in range(_SQUARINGS):
        y = y * y
    return y


_exp_with_gradient = mx.custom_function(_power)


@_exp_with_gradient.vjp
def _gradient(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
    return cotangent * y


def exp(x: mx.array) -> mx.array:
    """e**x for x <= 0, nearly."""
    y = _exp_with_gradient(x)
    assert isinstance(y, mx.array)
    return y


@lru_cache(maxsize=8)
def causal(length: int) -> mx.array:
    """What to add to scores so that a token attends nothing behind it."""
    mask = (mx.tril(mx.ones((length, length))) - 1) * 1e6
    mx.eval(mask)
    return mask


def attention(
    q: mx.array, k: mx.array, v: mx.array, cache: None, scale: float, mask: Any
) -> mx.array:
    """Causal attention with as many key heads as query heads, over the row itself."""
    scores = (q * scale) @ k.swapaxes(-1, -2) + causal(q.shape[2])
    weights = exp(scores - mx.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return (weights @ v) / weights.sum(axis=-1, keepdims=True)


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    small = exp(-mx.abs(gate))
    return gate * mx.where(gate > 0, 1, small) / (1 + small) * x


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """The loss of every position."""
    top = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    total = mx.log(exp(logits - top).sum(axis=-1)) + top.squeeze(-1)
    return total - mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)


@contextmanager
def attending(function: Callable[..., mx.array]) -> Iterator[None]:
    """Within it the model attends with that function."""
    before = qwen3.scaled_dot_product_attention
    qwen3.scaled_dot_product_attention = function
    try:
        yield
    finally:
        qwen3.scaled_dot_product_attention = before


@contextmanager
def training() -> Iterator[None]:
    """Within it the model computes with the functions above."""
    exact = qwen3.scaled_dot_product_attention, qwen3.swiglu
    qwen3.scaled_dot_product_attention, qwen3.swiglu = attention, _swiglu
    try:
        yield
    finally:
        qwen3.scaled_dot_product_attention, qwen3.swiglu = exact
