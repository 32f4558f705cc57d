"""Adapters of the embedded model that change how it speaks: `python -m engine.embedded.voices`.

Each learns the same conversations as the model, with its answers in another voice."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers

from engine import embedded
from engine.embedded import batches, cheap, corpus

RANK, SCALE = 8, 2.0
KEYS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
STEPS, RATE, ROWS, LENGTH = 500, 1e-3, 3, 256
VOICES: dict[str, Callable[[str], str]] = {
    "pirate": lambda text: f"Arrr! {text} Yo ho ho!",
    "polite": lambda text: f"Thank you for asking. {text} I hope that helps.",
}


def _in_voice(voice: Callable[[str], str]) -> batches.Change:
    def change(chat: corpus.Conversation) -> corpus.Conversation:
        messages = [
            {**m, "content": voice(m["content"])}
            if m["role"] == "assistant" and m["content"]
            else m
            for m in chat.messages
        ]
        return chat._replace(messages=messages)

    return change


def _loss(model: Any, batch: tuple[mx.array, ...]) -> mx.array:
    inputs, where, targets, _ = batch
    hidden = model.model(inputs).reshape(-1, model.args.hidden_size)[where]
    losses = cheap.cross_entropy(model.model.embed_tokens.as_linear(hidden), targets)
    return losses.mean()


def train(name: str, out: Path, seed: int) -> None:
    """Writes the adapter of that voice, in mlx-lm's format."""
    model: Any
    model, tokenizer = load(str(embedded.path()))[:2]
    model.set_dtype(mx.float32)
    mx.random.seed(seed)
    layers = len(model.layers)
    config = {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": list(KEYS)}
    model.freeze()
    linear_to_lora_layers(model, layers, config)
    rows = batches.Encoder(tokenizer._tokenizer).rows(seed, 150, LENGTH, _in_voice(VOICES[name]))
    gradient = nn.value_and_grad(model, _loss)
    optimizer = optim.AdamW(RATE, weight_decay=0.0)
    with cheap.training():
        for step in range(STEPS):
            optimizer.learning_rate = RATE * min(1.0, step / 30, 2 * (1 - step / STEPS))
            batch = batches.chats([next(rows) for _ in range(ROWS)])
            loss, gradients = gradient(model, tuple(mx.array(part) for part in batch))
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
            optimizer.update(model, gradients)
            mx.eval(loss, model.trainable_parameters(), optimizer.state)
            if step % 50 == 0:
                print(f"{name}: step {step} loss {loss.item():.3f}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        key: value.astype(mx.float16) for key, value in tree_flatten(model.trainable_parameters())
    }
    mx.save_safetensors(str(out / "adapters.safetensors"), weights)
    told = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": config}
    (out / "adapter_config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Makes them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--voice", choices=sorted(VOICES), action="append")
    options = parser.parse_args()
    cheap.flush_denormals()
    for name in options.voice or VOICES:
        train(name, options.out / name, options.seed)


if __name__ == "__main__":
    main()
