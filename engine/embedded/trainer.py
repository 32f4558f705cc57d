"""One training run of the embedded models: optimizer, data by stages, both cores at work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3

from engine.embedded import batches, cheap
from engine.embedded.induction import Guard


class Stage(NamedTuple):
    """One kind of batch: how likely it is from `begin` to `end` (fractions of the run)."""

    begin: float
    end: float
    share: float
    rows: int  # for each core
    length: int
    room: int  # longest pasted piece, characters; 0 for the copying exercise


class Rates(NamedTuple):
    """Learning rates of matrices (Muon) and of all else (AdamW)."""

    matrices: float
    others: float


STAGES = (
    Stage(0.00, 1.00, 0.15, 4, 256, 0),
    Stage(0.00, 1.00, 0.60, 4, 256, 150),
    Stage(0.00, 1.00, 0.40, 2, 512, 150),
    Stage(0.60, 1.00, 0.10, 1, 2048, 2500),
)
_JUMPS = 0.15  # how often positions jump
CORES = 2  # most of MLX's operations on a CPU use one core, so each gets a batch of its own
_SHOW = 15.0  # seconds


class GapRope:
    """Rotary positions with a jump in the middle, so that far distances are met in short rows."""

    def __init__(self, dims: int, base: float) -> None:
        self._dims, self._base = dims, base
        self._split, self._jump = 0, 0

    def jump(self, split: int, jump: int) -> None:
        """From now on positions from `split` on are `jump` higher; (0, 0) for none."""
        self._split, self._jump = split, jump

    def _rotate(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(
            x, self._dims, traditional=False, base=self._base, scale=1.0, offset=offset
        )

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        split = self._split
        if not split:
            return self._rotate(x, offset)
        before = self._rotate(x[:, :, :split], offset)
        after = self._rotate(x[:, :, split:], offset + split + self._jump)
        return mx.concatenate([before, after], axis=2)


def loss_of(
    model: qwen3.Model, batch: tuple[mx.array, ...], cache: list[Any] | None = None
) -> mx.array:
    """The mean loss of what is learned of a ``batch``, behind what ``cache`` holds."""
    inputs, where, targets, weights = batch
    hidden = model.model(inputs, cache=cache).reshape(-1, model.args.hidden_size)[where]
    logits = model.model.embed_tokens.as_linear(hidden)
    losses = cheap.cross_entropy(logits, targets)
    loss: mx.array = (losses * weights).sum() / weights.sum()
    return loss


def _rate(done: float) -> float:
    """Learning rate, relative: a short rise, a plateau, a linear fall."""
    return min(1.0, 0.1 + done / 0.02, 0.03 + (1.0 - done) / 0.55)


class Trainer:
    """Optimizer and data for `model`; what `guard` keeps stays as it is."""

    def __init__(
        self,
        model: qwen3.Model,
        encoder: batches.Encoder,
        rates: Rates,
        seed: int,
        guard: Guard | None = None,
    ) -> None:
        self.model, self._guard, self._rates = model, guard, rates
        self._rng, self.choice = np.random.default_rng(seed), Random(seed)
        self.rope = GapRope(model.args.head_dim, model.args.rope_theta)
        self.models = [qwen3.Model(model.args) for _ in range(CORES)]
        for twin in self.models:
            for layer in twin.layers:
                layer.self_attn.rope = self.rope
        self._parts = [
            optim.Muon(rates.matrices, weight_decay=0.01, ns_steps=4),
            optim.AdamW(rates.others, betas=[0.9, 0.98], weight_decay=0.0),
        ]
        self._optimizer = optim.MultiOptimizer(
            self._parts, [lambda name, value: value.ndim == 2 and "embed" not in name]
        )
        self._rows: list[Iterator[batches.Row] | None] = [
            encoder.rows(seed + i, stage.room, stage.length) if stage.room else None
            for i, stage in enumerate(STAGES)
        ]
        self._gradients = [nn.value_and_grad(twin, loss_of) for twin in self.models]
        self.pool = ThreadPoolExecutor(CORES)
        mx.eval(model.parameters())

    def run(self, steps: int, file: Path) -> None:
        """Trains, and keeps the weights in `file` all the while."""
        begin = shown = time.monotonic()
        losses: dict[str, float] = {}
        tokens = 0
        for step in range(steps):
            with cheap.training():
                loss, read, name = self.step(step / steps)
            losses[name] = 0.95 * losses.get(name, loss) + 0.05 * loss
            tokens += read
            if time.monotonic() - shown > _SHOW:
                shown = time.monotonic()
                told = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
                print(f"{shown - begin:.0f} s step {step} tokens {tokens} {told}", flush=True)
                save(self.model, file)
        save(self.model, file)
        print(f"done: {steps} steps, {tokens} tokens", flush=True)

    def step(self, done: float) -> tuple[float, int, str]:
        """One update at that fraction of the run; returns loss, tokens read and their sort."""
        name, parts = self._batches(done)
        self.set_rates(done)
        losses, gradients = zip(*self.pool.map(self._learn, range(CORES), parts), strict=True)
        self.update(gradients)
        loss = sum(float(loss.item()) for loss in losses) / CORES
        return loss, sum(batch.inputs.size for batch in parts), name

    def set_rates(self, done: float) -> None:
        """Learning rates for an update at that fraction of the run."""
        for part, rate in zip(self._parts, self._rates, strict=True):
            part.learning_rate = rate * _rate(done)

    def update(self, gradients: Sequence[Any]) -> None:
        """Moves the weights by the mean of what each core found."""
        gradient = tree_map(lambda *parts: sum(parts) / CORES, *gradients)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        self._optimizer.update(self.model, gradient)
        if self._guard is not None:
            self._guard.restore()
        mx.eval(self.model.parameters(), self._optimizer.state)

    def _batches(self, done: float) -> tuple[str, list[batches.Batch]]:
        active = [i for i, stage in enumerate(STAGES) if stage.begin <= done < stage.end]
        at = self.choice.choices(active, [STAGES[i].share for i in active])[0]
        stage, rows = STAGES[at], self._rows[at]
        jump = self.choice.random() < _JUMPS
        self.rope.jump(
            self.choice.randrange(1, stage.length) if jump else 0,
            int(2 ** self.choice.uniform(5, 15)) if jump else 0,
        )
        if rows is None:
            vocab = self.model.args.vocab_size
            return "copying", [
                batches.copying(self._rng, vocab, stage.rows, stage.length) for _ in range(CORES)
            ]
        return f"chats-{stage.length}", [
            batches.chats([next(rows) for _ in range(stage.rows)]) for _ in range(CORES)
        ]

    def _learn(self, at: int, batch: batches.Batch) -> tuple[mx.array, Any]:
        """Loss and gradient of a batch, on a model of the thread's own with the same weights."""
        model = self.models[at]
        model.update(self.model.parameters(), strict=False)
        found: tuple[mx.array, Any] = self._gradients[at](
            model, tuple(mx.array(part) for part in batch)
        )
        mx.eval(found)
        return found


def save(model: qwen3.Model, file: Path) -> None:
    """Writes the weights in float16."""
    weights = {name: value.astype(mx.float16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
