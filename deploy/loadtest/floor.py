"""The raw floor under a load of agents with one system prompt: no HTTP, no text, no scheduler.

Every distinct token is computed once and every decode step is a full batch that reads the shared
prefix once. Run as a process of its own (``python -m deploy.loadtest.floor MODEL_DIR --shared N
--agents N --new N --suffixes N ...``) so that it gets the same environment as a server. Prints one
JSON object: seconds of the shared prefill, of all suffixes, of all decode steps, and their sum.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm.models.base as base
from mlx_lm import load
from mlx_lm.models import qwen3

from deploy.loadtest.bare import Prefix

NOTHING = -1e30  # a score that no softmax sees
original = base.scaled_dot_product_attention


class SharedPrefix:
    """One layer's cache of rows behind one prefix: the rows' own tokens [B, heads, T, dim]."""

    def __init__(self, keys: mx.array, values: mx.array, rows: int, own: int, room: int) -> None:
        self.prefix = keys, values
        self.length = own
        shape = (rows, keys.shape[1], own + room)
        self.keys = mx.random.normal((*shape, keys.shape[3]))
        self.values = mx.random.normal((*shape, values.shape[3]))
        mx.eval(self.keys, self.values)
        self.offset = keys.shape[2] + own

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length, self.offset = end, self.offset + keys.shape[2]
        return self.keys[:, :, :end], self.values[:, :, :end]

    def make_mask(self, *_: object, **__: object) -> None:
        return None


def attend(queries, keys, values, cache, scale, mask, sinks=None):
    """One token of each row over prefix and own tokens, merged by their log-sum-exp."""
    if not isinstance(cache, SharedPrefix):
        return original(queries, keys, values, cache, scale=scale, mask=mask, sinks=sinks)
    rows, all_heads, _, dim = queries.shape
    heads = keys.shape[1]
    per_row = (queries * scale).reshape(rows, heads, all_heads // heads, dim)
    stacked = per_row.transpose(1, 0, 2, 3).reshape(1, heads, -1, dim)
    parts = []
    for q, (k, v) in ((stacked, cache.prefix), (per_row, (keys, values))):
        scores = q @ k.swapaxes(-1, -2)
        top = scores.max(-1, keepdims=True)
        weights = mx.exp(scores - top)
        parts.append((top, weights.sum(-1, keepdims=True), weights @ v))
    shared = [x.reshape(heads, rows, -1, x.shape[-1]).transpose(1, 0, 2, 3) for x in parts[0]]
    top = mx.maximum(shared[0], parts[1][0])
    first, second = mx.exp(shared[0] - top), mx.exp(parts[1][0] - top)
    mass = first * shared[1] + second * parts[1][1]
    return ((first * shared[2] + second * parts[1][2]) / mass).reshape(queries.shape)


def decode_seconds(model, prefix: Prefix, shared: int, own: int, rows: int, steps: int) -> float:
    """Seconds of ``steps`` greedy steps of ``rows`` rows with ``own`` tokens each."""
    prefix.fill(shared)
    caches = [
        SharedPrefix(c.keys[:, :, :shared], c.values[:, :, :shared], rows, own, steps)
        for c in prefix.layers
    ]
    tokens = mx.random.randint(3, model.args.vocab_size, (rows,))
    start = time.perf_counter()
    for _ in range(steps):
        tokens = mx.argmax(model(tokens[:, None], cache=caches)[:, -1], axis=-1)
        mx.eval(tokens)
    return time.perf_counter() - start


def floor(model, agents: int, shared: int, suffixes: list[int], new: int) -> dict[str, float]:
    """The seconds of each part of the load."""
    prefix = Prefix(model)
    prefix.fill(512)  # the first pass through a model also sets it up
    prefix.fill(0)
    whole = prefix.fill(shared)
    suffix = decode = 0.0
    length = shared
    for size in suffixes:
        suffix += agents * prefix.time(length, size)
        length += size
        decode += decode_seconds(model, prefix, shared, length - shared, agents, new - 1)
    parts = {"prefill_s": whole, "suffix_s": suffix, "decode_s": decode}
    return {name: round(s, 2) for name, s in (*parts.items(), ("floor_s", sum(parts.values())))}


def main() -> None:
    """Measures what the command line describes."""
    parser = argparse.ArgumentParser(description="time the floor under a load of agents")
    parser.add_argument("model", type=Path)
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--shared", type=int, required=True, help="tokens of the shared prefix")
    parser.add_argument("--new", type=int, required=True, help="tokens of a reply")
    parser.add_argument(
        "--suffixes", type=int, nargs="+", required=True, help="new prompt tokens, by turn"
    )
    a = parser.parse_args()
    model, _ = load(str(a.model))
    qwen3.scaled_dot_product_attention = attend
    print(json.dumps(floor(model, a.agents, a.shared, a.suffixes, a.new)))


if __name__ == "__main__":
    main()
