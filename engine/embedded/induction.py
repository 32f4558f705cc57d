"""First weights of the embedded model: it starts out able to continue what it has seen before.

Head 0 of layer 0 looks at the previous token; head 0 of layer 1 looks for places where the
previous token was the current one, and says what stood there. Head 1 of every layer sees what
was said last. Training takes it from there, but for what the copying itself lives on: left free,
the embedding alone would blur it within a hundred steps."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx_lm.models import qwen3
from numpy.typing import NDArray

_NEAR = 6  # fast rotary pairs that tell neighbours apart
_FAR = 15  # slow rotary pairs, nearly still over thousands of tokens: these compare content
_LOOK_BACK = 10.0
_MATCH = 3.0
_SAY = 2.0
_PASS_ON = 0.2
_RECENT = 0.25
_AROUND = 0.5

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


class Guard:
    """Keeps what the copying heads live on as it was when the model was prepared.

    That are the heads' own weights, what they read of the embedding, and the silence of all else
    in layer 0 on the directions that they use.
    """

    def __init__(self, model: qwen3.Model, read: Matrix, write: Matrix) -> None:
        args, self._model = model.args, model
        self._head = args.head_dim
        taken = np.concatenate([read, write, np.eye(1, args.hidden_size, dtype=np.float32)])
        self._taken = mx.array(np.linalg.qr(taken.T)[0].T)
        embedding = model.model.embed_tokens.weight
        self._embedded = (embedding @ self._taken.T) @ self._taken
        self._heads = [self._weights(layer.self_attn) for layer in model.layers[:2]]
        self._norms = [
            (layer.self_attn.q_norm, layer.self_attn.k_norm, layer.input_layernorm)
            for layer in model.layers[:2]
        ]
        self._scales = [tuple(norm.weight for norm in norms) for norms in self._norms]
        mx.eval(self._embedded, self._heads, self._scales)

    def _weights(self, attention: qwen3.Attention) -> tuple[mx.array, ...]:
        inner = (attention.q_proj, attention.k_proj, attention.v_proj)
        return (*(p.weight[: self._head] for p in inner), attention.o_proj.weight[:, : self._head])

    def restore(self) -> None:
        """Undoes what a step of training did to it."""
        embedding = self._model.model.embed_tokens
        moved = (embedding.weight @ self._taken.T) @ self._taken
        embedding.weight = embedding.weight - moved + self._embedded
        layers = self._model.layers[:2]
        for layer, heads, norms, scales in zip(
            layers, self._heads, self._norms, self._scales, strict=True
        ):
            attention = layer.self_attn
            for projection, weight in zip(
                (attention.q_proj, attention.k_proj, attention.v_proj), heads[:3], strict=True
            ):
                projection.weight = mx.concatenate([weight, projection.weight[self._head :]])
            for norm, scale in zip(norms, scales, strict=True):
                norm.weight = scale
            others = attention.o_proj.weight[:, self._head :]
            if layer is layers[0]:
                others = self._off(others)
            attention.o_proj.weight = mx.concatenate([heads[3], others], axis=1)
        first = layers[0]
        first.mlp.down_proj.weight = self._off(first.mlp.down_proj.weight)

    def _off(self, weight: mx.array) -> mx.array:
        """Output weights [width, n] less what they write on the guarded directions."""
        return weight - self._taken.T @ (self._taken @ weight)


def prepare(model: qwen3.Model, seed: int) -> Guard:
    """Overwrites the first head of two layers and component 0 of the embedding."""
    args, rng = model.args, np.random.default_rng(seed)
    width, dims = args.hidden_size, args.head_dim
    head, everything = slice(0, dims), slice(None)
    model.model.embed_tokens.weight[:, 0] = 1.0
    first, second = (layer.self_attn for layer in model.layers[:2])

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
        _look_around(layer.self_attn, dims, np.concatenate([read, write]))
    return Guard(model, read, write)


def widen(narrow: qwen3.Model, wide: qwen3.Model) -> None:
    """Makes ``wide``, which has more heads, compute what ``narrow`` does; nobody hears the new."""
    for name in ("embed_tokens", "norm"):
        wide.model[name].update(narrow.model[name].parameters())
    for old, new in zip(narrow.model.layers, wide.model.layers, strict=True):
        inner = old.self_attn.o_proj.weight.shape[1]
        new.mlp.update(old.mlp.parameters())
        for name in ("input_layernorm", "post_attention_layernorm"):
            new[name].update(old[name].parameters())
        for name in ("q_norm", "k_norm"):
            new.self_attn[name].update(old.self_attn[name].parameters())
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = new.self_attn[name].weight
            kept = [old.self_attn[name].weight, weight[inner:]]
            new.self_attn[name].weight = mx.concatenate(kept)
        silent = mx.zeros_like(new.self_attn.o_proj.weight[:, inner:])
        kept = [old.self_attn.o_proj.weight, silent]
        new.self_attn.o_proj.weight = mx.concatenate(kept, axis=1)


def _look_around(attention: qwen3.Attention, dims: int, taken: Matrix) -> None:
    """Head 1 prefers the last fifty tokens or so, where the question stands.

    What it writes stays off the directions `taken` by the heads that copy."""
    medium = np.r_[_NEAR - 2 : _NEAR + 3]
    for projection in (attention.q_proj, attention.k_proj):
        weight = np.array(projection.weight)
        weight[dims + medium, 0] = _RECENT
        weight[dims + dims // 2 + medium, 0] = 0
        projection.weight = mx.array(weight)
    value = np.array(attention.v_proj.weight)
    value[dims:, 0] = 0  # the same in every token, so it says nothing
    attention.v_proj.weight = mx.array(value)
    out = np.array(attention.o_proj.weight)
    out[:, dims:] = _AROUND * (out[:, dims:] - taken.T @ (taken @ out[:, dims:]))
    out[0, dims:] = 0
    attention.o_proj.weight = mx.array(out)
