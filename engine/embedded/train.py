"""Makes the embedded model: `python -m engine.embedded.train --out DIR [--minutes 20]`.

Trains a tokenizer and a two-layer Qwen3 on generated conversations, in float32; saves float16."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from engine import embedded
from engine.embedded import batches, induction

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 640,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "vocab_size": 3072,
    "max_position_embeddings": 65536,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float16",
}


class Stage(NamedTuple):
    """One kind of batch: how likely it is from `begin` to `end` (fractions of the time)."""

    begin: float
    end: float
    share: float
    rows: int
    length: int
    room: int  # longest pasted piece, characters; 0 for the copying exercise


STAGES = (
    Stage(0.00, 0.80, 0.15, 8, 256, 0),
    Stage(0.00, 0.70, 1.0, 4, 512, 150),
    Stage(0.55, 1.00, 1.0, 2, 1024, 1200),
    Stage(0.70, 1.00, 0.5, 4, 512, 150),
    Stage(0.80, 1.00, 0.15, 1, 4096, 6000),
)


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


def _loss(model: qwen3.Model, batch: tuple[mx.array, ...]) -> mx.array:
    inputs, where, targets, weights = batch
    hidden = model.model(inputs).reshape(-1, CONFIG["hidden_size"])[where]
    logits = model.model.embed_tokens.as_linear(hidden)
    losses = nn.losses.cross_entropy(logits, targets)
    loss: mx.array = (losses * weights).sum() / weights.sum()
    return loss


def _rate(done: float) -> float:
    """Learning rate, relative: a short rise, a plateau, a linear fall."""
    return min(1.0, 0.1 + done / 0.02, 0.03 + (1.0 - done) / 0.55)


class Trainer:
    """Model, optimizer and data of one training run."""

    def __init__(self, encoder: batches.Encoder, seed: int) -> None:
        mx.random.seed(seed)
        self._rng, self._choice = np.random.default_rng(seed), Random(seed)
        self.model = qwen3.Model(qwen3.ModelArgs.from_dict(CONFIG))
        induction.prepare(self.model, seed)
        self._rope = GapRope(CONFIG["head_dim"], CONFIG["rope_theta"])
        for layer in self.model.layers:
            layer.self_attn.rope = self._rope
        self._rates = (0.003, 0.0016)
        self._parts = [
            optim.Muon(self._rates[0], weight_decay=0.01),
            optim.AdamW(self._rates[1], betas=[0.9, 0.98], weight_decay=0.0),
        ]
        self._optimizer = optim.MultiOptimizer(
            self._parts, [lambda name, value: value.ndim == 2 and "embed" not in name]
        )
        self._rows: list[Iterator[batches.Row] | None] = [
            encoder.rows(seed + i, stage.room, stage.length) if stage.room else None
            for i, stage in enumerate(STAGES)
        ]
        self._gradient = nn.value_and_grad(self.model, _loss)

    def _batch(self, done: float) -> batches.Batch:
        active = [i for i, stage in enumerate(STAGES) if stage.begin <= done < stage.end]
        at = self._choice.choices(active, [STAGES[i].share for i in active])[0]
        stage, rows = STAGES[at], self._rows[at]
        jump = self._choice.random() < 0.3
        self._rope.jump(
            self._choice.randrange(1, stage.length) if jump else 0,
            int(2 ** self._choice.uniform(5, 15)) if jump else 0,
        )
        if rows is None:
            return batches.copying(self._rng, CONFIG["vocab_size"], stage.rows, stage.length)
        return batches.chats([next(rows) for _ in range(stage.rows)], self._rng)

    def step(self, done: float) -> tuple[float, tuple[int, ...]]:
        """One update at that fraction of the run; returns the loss and the shape read."""
        batch = self._batch(done)
        for part, rate in zip(self._parts, self._rates, strict=True):
            part.learning_rate = rate * _rate(done)
        loss, gradients = self._gradient(self.model, tuple(mx.array(part) for part in batch))
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        self._optimizer.update(self.model, gradients)
        mx.eval(loss, self.model.parameters(), self._optimizer.state)
        return float(loss.item()), batch.inputs.shape


def save(model: qwen3.Model, out: Path) -> None:
    """Writes the weights in float16 and the configuration."""
    weights = {name: value.astype(mx.float16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(out / "model.safetensors"), weights, {"format": "mlx"})


def _save_tokenizer(out: Path, seed: int) -> batches.Encoder:
    template = batches.template_text(embedded.path())
    tokenizer = batches.make_tokenizer(CONFIG["vocab_size"], template, seed)
    tokenizer.save_pretrained(str(out))
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    files = {
        "config.json": CONFIG | {"eos_token_id": ends},
        "generation_config.json": {"eos_token_id": ends, "do_sample": False, "temperature": 0.0},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": CONFIG["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return batches.Encoder(tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(_save_tokenizer(options.out, options.seed), options.seed)
    begin = shown = time.monotonic()
    losses: dict[int, float] = {}  # by tokens per row
    steps = tokens = 0
    while (done := (time.monotonic() - begin) / (60 * options.minutes)) < 1:
        loss, (rows, length) = trainer.step(done)
        losses[length] = 0.9 * losses.get(length, loss) + 0.1 * loss
        steps, tokens = steps + 1, tokens + rows * length
        if time.monotonic() - shown > 15:
            shown = time.monotonic()
            told = " ".join(f"{length}:{loss:.3f}" for length, loss in losses.items())
            print(f"{done:6.1%} step {steps} tokens {tokens} losses {told}", flush=True)
            save(trainer.model, options.out)
    save(trainer.model, options.out)
    print(f"done: {steps} steps, {tokens} tokens")


if __name__ == "__main__":
    main()
