"""The last part of training: short endings of prompts as long as coding clients send them.

The keys and values of a prompt are computed once, by the model as it is, and serve several
updates; no gradient flows into them. So an update costs little more than the ending does."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3
from mlx_lm.models.cache import KVCache

from engine.embedded import batches, cheap, clients
from engine.embedded.trainer import CORES, Rates, Trainer, loss_of

_SHORTEST, _LONGEST = 3_000, 90_000  # characters of a prompt
_ENDINGS, _AT_ONCE = 12, 3
_UPDATES = 4  # for which a prompt's keys and values serve
_SHARE = 0.3  # of the updates are for long prompts; the others keep what was learned before
_CHUNK = 512


class LentKV:
    """A layer's keys and values [1, heads, length, dim] of a prompt: a cache that never grows."""

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        self.keys, self.values = keys, values
        self.offset = keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Those of the endings alone; attention reads the prompt's from here."""
        return keys, values

    def make_mask(self, *args: Any, **options: Any) -> None:
        """None: attention knows what is causal here."""


class Prompt(NamedTuple):
    """A prompt's keys and values by layer, and its endings."""

    layers: list[LentKV]
    endings: list[batches.Row]


def _attention(q: mx.array, k: mx.array, v: mx.array, cache: Any, **options: Any) -> mx.array:
    if isinstance(cache, LentKV):
        return _over_prompt(q * options["scale"], k, v, cache)
    if cache is None:
        return cheap.attention(q, k, v, cache, **options)
    exact: mx.array = cheap.exact_attention(q, k, v, cache, **options)
    return exact


def _over_prompt(q: mx.array, k: mx.array, v: mx.array, prompt: LentKV) -> mx.array:
    """Scaled queries [rows, heads, tokens, dim] attend the prompt, and their own row causally."""
    rows, heads, tokens, dim = q.shape
    flat = q.swapaxes(0, 1).reshape(1, heads, rows * tokens, dim)
    far = (flat @ prompt.keys.swapaxes(-1, -2)).reshape(heads, rows, tokens, -1).swapaxes(0, 1)
    near = q @ k.swapaxes(-1, -2) + cheap.causal(tokens)
    most = mx.maximum(far.max(axis=-1, keepdims=True), near.max(axis=-1, keepdims=True))
    most = mx.stop_gradient(most)
    far, near = cheap.exp(far - most), cheap.exp(near - most)
    total = far.sum(axis=-1, keepdims=True) + near.sum(axis=-1, keepdims=True)
    flat = far.swapaxes(0, 1).reshape(1, heads, rows * tokens, -1) @ prompt.values
    return (flat.reshape(heads, rows, tokens, dim).swapaxes(0, 1) + near @ v) / total


def _loss(model: qwen3.Model, batch: tuple[mx.array, ...], layers: list[LentKV]) -> mx.array:
    return loss_of(model, batch, layers)


class LongTrainer(Trainer):
    """A trainer for which every other update is one for long prompts."""

    def __init__(
        self, model: qwen3.Model, encoder: batches.Encoder, rates: Rates, seed: int
    ) -> None:
        super().__init__(model, encoder, rates, seed)
        self._encoder = encoder
        self._random = [Random(seed + 1000 * core) for core in range(CORES)]
        self._prompts: list[Prompt] = []
        self._left = 0
        self._far_gradients = [nn.value_and_grad(twin, _loss) for twin in self.models]

    def step(self, done: float) -> tuple[float, int, str]:
        """One update at that fraction of the run; returns loss, tokens read and their sort."""
        if self.choice.random() > _SHARE:
            return super().step(done)
        self.set_rates(done)
        self.rope.jump(0, 0)
        with cheap.attending(_attention):
            if not self._left:
                self._prompts = list(self.pool.map(self._prefill, range(CORES)))
                self._left = _UPDATES
            self._left -= 1
            losses, gradients = zip(*self.pool.map(self._learn_far, range(CORES)), strict=True)
        self.update(gradients)
        read = sum(prompt.layers[0].offset for prompt in self._prompts) // _UPDATES
        return sum(float(loss.item()) for loss in losses) / CORES, read, "distant"

    def _prefill(self, core: int) -> Prompt:
        model, rng = self.models[core], self._random[core]
        model.update(self.model.parameters(), strict=False)
        # Most are short: a prompt costs by the square of its length.
        size = int(_SHORTEST * (_LONGEST / _SHORTEST) ** (rng.random() ** 3))
        made = clients.long_prompt(rng, size, _ENDINGS)
        chats = [self._encoder.chat(chat) for chat in made.conversations()]
        first = min(next(i for i, w in enumerate(weights) if w) for _, weights in chats) - 1
        shared = list(zip(*(ids[:first] for ids, _ in chats), strict=True))
        common = next((i for i, c in enumerate(shared) if len(set(c)) > 1), first)
        caches = [KVCache() for _ in model.layers]
        for start in range(0, common, _CHUNK):
            ids = chats[0][0][start : min(start + _CHUNK, common)]
            model.model(mx.array(ids)[None], cache=caches)
            mx.eval([(c.keys, c.values) for c in caches])
        layers = [LentKV(c.keys[:, :, :common], c.values[:, :, :common]) for c in caches]
        mx.eval([(layer.keys, layer.values) for layer in layers])  # another thread may read them
        return Prompt(layers, [batches.Row(ids[common:], w[common:]) for ids, w in chats])

    def _learn_far(self, core: int) -> tuple[mx.array, Any]:
        model, prompt = self.models[core], self._prompts[core]
        model.update(self.model.parameters(), strict=False)
        some = self._random[core].sample(prompt.endings, min(_AT_ONCE, len(prompt.endings)))
        batch = batches.chats(self._encoder.filled(some))
        found: tuple[mx.array, Any] = self._far_gradients[core](
            model, tuple(mx.array(part) for part in batch), prompt.layers
        )
        mx.eval(found)
        return found
