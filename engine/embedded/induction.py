"""First weights of the embedded model: it starts out able to continue what it has seen before.

Head 0 of layer 0 looks at the previous token; head 0 of layer 1 looks for places where the
previous token was the current one, and says what stood there. Training takes it from there."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx_lm.models import qwen3
from numpy.typing import NDArray

_NEAR = 14  # fast rotary pairs that tell neighbours apart
_FAR = 26  # slow rotary pairs, nearly still over thousands of tokens: these compare content
_LOOK_BACK = 10.0
_MATCH = 3.0
_SAY = 2.0
_PASS_ON = 0.2

Matrix = NDArray[np.float32]


def _halves(rng: np.random.Generator, rows: int, columns: int) -> tuple[Matrix, Matrix]:
    """Two orthonormal bases, orthogonal to each other as far as there is room."""
    q, _ = np.linalg.qr(rng.standard_normal((columns, columns)))
    q[0] = 0
    basis = np.asarray(q.T, dtype=np.float32)
    return basis[:rows], basis[columns - rows :]


def _put(array: mx.array, rows: slice, columns: slice, value: Matrix) -> mx.array:
    out = np.array(array)
    out[rows, columns] = value
    return mx.array(out)


def _previous(width: int, dims: int, base: float) -> tuple[Matrix, Matrix]:
    """Query and key weights that read component 0 (the same in every token) and meet one back."""
    half = dims // 2
    angles = base ** (-np.arange(_NEAR) / half)
    query, key = np.zeros((2, dims, width), dtype=np.float32)
    query[:_NEAR, 0] = 1
    # The key is turned forward by one position, so that the product peaks one token back.
    key[:_NEAR, 0] = np.cos(angles)
    key[half : half + _NEAR, 0] = np.sin(angles)
    return query, key


def prepare(model: qwen3.Model, seed: int) -> None:
    """Overwrites the first head of both layers and component 0 of the embedding."""
    args, rng = model.args, np.random.default_rng(seed)
    width, dims = args.hidden_size, args.head_dim
    head, everything = slice(0, dims), slice(None)
    model.model.embed_tokens.weight[:, 0] = 1.0
    first, second = (layer.self_attn for layer in model.layers)

    query, key = _previous(width, dims, args.rope_theta)
    read, write = _halves(rng, dims, width)
    first.q_proj.weight = _put(first.q_proj.weight, head, everything, query)
    first.k_proj.weight = _put(first.k_proj.weight, head, everything, key)
    first.v_proj.weight = _put(first.v_proj.weight, head, everything, read)
    first.o_proj.weight = _put(first.o_proj.weight, everything, head, _PASS_ON * write.T)
    first.q_norm.weight = first.q_norm.weight * _LOOK_BACK

    half = dims // 2
    slow = np.r_[half - _FAR : half, dims - _FAR : dims]
    query, key = np.zeros((2, dims, width), dtype=np.float32)
    query[slow] = read[: 2 * _FAR]
    key[slow] = write[: 2 * _FAR]
    second.q_proj.weight = _put(second.q_proj.weight, head, everything, query)
    second.k_proj.weight = _put(second.k_proj.weight, head, everything, key)
    second.v_proj.weight = _put(second.v_proj.weight, head, everything, read)
    second.o_proj.weight = _put(second.o_proj.weight, everything, head, _SAY * read.T)
    second.q_norm.weight = second.q_norm.weight * _MATCH
    for layer in model.layers:
        layer.mlp.down_proj.weight = layer.mlp.down_proj.weight * 0.1
        layer.self_attn.o_proj.weight = _put(
            layer.self_attn.o_proj.weight,
            everything,
            slice(dims, None),
            0.1 * np.array(layer.self_attn.o_proj.weight, dtype=np.float32)[:, dims:],
        )
