"""Partial attention, merged, against MLX's fused attention over all of the tokens at once."""

from __future__ import annotations

import mlx.core as mx
import pytest

from engine.attention import (
    NOTHING,
    Partial,
    merge,
    nothing,
    partial,
    shared_partial,
    stack,
)

HEADS, REPEAT, DIM, VALUE_DIM = 2, 3, 16, 8
SCALE = DIM**-0.5
CLOSE = {mx.float32: 1e-5, mx.float16: 5e-3, mx.bfloat16: 4e-2}


def draw(seed: int, *shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def kv(seed: int, rows: int, tokens: int, dtype: mx.Dtype = mx.float32):
    keys = draw(seed, rows, HEADS, tokens, DIM, dtype=dtype)
    return keys, draw(seed + 1, rows, HEADS, tokens, VALUE_DIM, dtype=dtype)


def fused(queries, keys, values, sinks=None, mask=None):
    """Over queries [n, heads, r, dim], as partial takes them, unscaled."""
    n = queries.shape[0]
    flat = queries.reshape(n, HEADS * REPEAT, 1, DIM)
    output = mx.fast.scaled_dot_product_attention(
        flat, keys, values, scale=SCALE, mask=mask, sinks=sinks
    )
    return output.reshape(n, HEADS, REPEAT, VALUE_DIM).astype(mx.float32)


def assert_close(a: mx.array, b: mx.array, within: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert mx.abs(a - b).max().item() <= within


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("cuts", [[40], [1, 39], [7, 20, 13], [8] * 5])
def test_parts_merge_to_the_whole(cuts, dtype):
    queries = draw(0, 4, HEADS, REPEAT, DIM, dtype=dtype)
    keys, values = kv(1, 4, sum(cuts), dtype)
    parts, start = [], 0
    for length in cuts:
        piece = slice(start, start + length)
        parts.append(partial(queries * SCALE, keys[:, :, piece], values[:, :, piece]))
        start += length
    assert_close(merge(parts, None), fused(queries, keys, values), CLOSE[dtype])


@pytest.mark.parametrize("level", [-20.0, 0.0, 5.0, 60.0])
def test_sinks_take_part_in_the_normalisation(level):
    queries = draw(0, 3, HEADS, REPEAT, DIM)
    keys, values = kv(1, 3, 30)
    sinks = draw(3, HEADS, REPEAT) + level
    parts = [
        partial(queries * SCALE, keys[:, :, :11], values[:, :, :11]),
        partial(queries * SCALE, keys[:, :, 11:], values[:, :, 11:]),
    ]
    expected = fused(queries, keys, values, sinks.reshape(-1))
    assert_close(merge(parts, sinks), expected)
    if level == 5.0:
        assert mx.abs(merge(parts, None) - expected).max().item() > 0.05


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_block_shared_by_rows_is_attended_as_a_copy_for_each(rows):
    queries = draw(0, rows, HEADS, REPEAT, DIM) * SCALE
    keys, values = kv(1, 1, 25)
    copies = [mx.repeat(x, rows, axis=0) for x in (keys, values)]
    shared = shared_partial(queries, keys, values)
    for ours, theirs in zip(shared, partial(queries, *copies), strict=True):
        assert_close(ours, theirs)


def test_shared_run_and_ragged_tails_are_the_rows_own_attention():
    lengths = [1, 9, 16]
    queries = draw(0, 3, HEADS, REPEAT, DIM)
    run = kv(1, 1, 50)
    tails = kv(3, 3, 16)
    seen = mx.arange(16)[None] < mx.array(lengths)[:, None]
    bias = mx.where(seen, 0.0, NOTHING)[:, None, None, :]
    output = merge(
        [partial(queries * SCALE, *tails, bias), shared_partial(queries * SCALE, *run)], None
    )
    for row, length in enumerate(lengths):
        whole = [
            mx.concatenate([a, b[row : row + 1, :, :length]], axis=2)
            for a, b in zip(run, tails, strict=True)
        ]
        alone = fused(queries[row : row + 1], *whole)
        assert_close(output[row : row + 1], alone)


def test_rows_with_nothing_at_a_depth_are_left_as_they_are():
    queries = draw(0, 4, HEADS, REPEAT, DIM)
    tails, run = kv(1, 4, 6), kv(3, 1, 20)
    own = partial(queries * SCALE, *tails)
    lent = shared_partial(queries[:2] * SCALE, *run)
    output = merge([own, stack([lent, nothing(lent, 2)])], None)
    assert_close(output[2:], fused(queries[2:], *(x[2:] for x in tails)))
    whole = [
        mx.concatenate([mx.repeat(a, 2, axis=0), b[:2]], axis=2)
        for a, b in zip(run, tails, strict=True)
    ]
    assert_close(output[:2], fused(queries[:2], *whole))


def test_scores_far_apart_do_not_overflow():
    queries = mx.ones((1, HEADS, REPEAT, DIM))
    keys, values = kv(1, 1, 12)
    near, far = keys + 200.0, keys - 200.0
    parts = [partial(queries, near, values), partial(queries, far, values + 7.0)]
    output = merge(parts, None)
    assert mx.isfinite(output).all().item()
    alone = partial(queries, near, values)
    assert_close(output, alone.sum / alone.mass)


def test_partials_are_float32_whatever_the_model_is():
    queries = draw(0, 2, HEADS, REPEAT, DIM, dtype=mx.bfloat16)
    part = partial(queries, *kv(1, 2, 10, mx.bfloat16))
    assert isinstance(part, Partial)
    assert part.top.dtype == part.mass.dtype == part.sum.dtype == mx.float32
