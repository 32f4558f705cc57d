"""Makes the embedded models: `python -m engine.embedded.train --out DIR`.

Trains a tokenizer, a three-layer Qwen3 on generated conversations, and a smaller one that drafts
for it, in float32; saves float16. An hour on two cores with OpenBLAS."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3
from transformers import PreTrainedTokenizerFast

from engine import embedded
from engine.embedded import batches, cheap, induction
from engine.embedded.distant import LongTrainer
from engine.embedded.trainer import Rates, Trainer, save

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "intermediate_size": 256,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 4096,
    "max_position_embeddings": 65536,
    "rope_theta": 10000000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float16",
}
DRAFT_CONFIG = CONFIG | {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
WEIGHTS = "model.safetensors"
BEFORE = "before-long-prompts.safetensors"


def make_model(config: dict[str, Any], heads: int | None = None) -> qwen3.Model:
    """A model with fresh weights, and so many attention heads."""
    if heads is not None:
        config = config | {"num_attention_heads": heads, "num_key_value_heads": heads}
    return qwen3.Model(qwen3.ModelArgs.from_dict(config))


def _tokenizer(out: Path, seed: int, *, new: bool) -> batches.Encoder:
    """Of what is made anew: writes the model directories, but for the weights."""
    template = batches.template_text(embedded.path())
    if new:
        tokenizer = batches.make_tokenizer(CONFIG["vocab_size"], template, seed)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(out / embedded.NAME))
    for name, config in ((embedded.NAME, CONFIG), (embedded.DRAFT_NAME, DRAFT_CONFIG)):
        _save_folder(tokenizer, template, out / name, config)
    return batches.Encoder(tokenizer)


def _save_folder(tokenizer: Any, template: str, out: Path, config: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(out))
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    files = {
        "config.json": config | {"eos_token_id": ends},
        "generation_config.json": {"eos_token_id": ends, "do_sample": False, "temperature": 0.0},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class Phase(NamedTuple):
    """A part of the run: steps and learning rates, heads, whether what copies is guarded."""

    steps: int
    rates: Rates
    heads: int
    guarded: bool = False


# Guarded, the model learns to use the two heads that copy; then all of it is free.
PHASES = (
    Phase(4000, Rates(0.005, 0.002), heads=2, guarded=True),
    Phase(2800, Rates(0.003, 0.001), heads=3),
    Phase(2200, Rates(0.0025, 0.0008), heads=3),
)


class LongPhase(NamedTuple):
    """A part of the run with long prompts; of what it changed, ``share`` is kept.

    The weights are averaged with those before all long prompts, so that little is forgotten
    (Wortsman et al., Robust fine-tuning of zero-shot models, 2022).
    """

    steps: int
    rates: Rates
    share: float


LONG_PHASES = (
    LongPhase(200, Rates(0.0012, 0.0004), 1.0),
    LongPhase(300, Rates(0.0006, 0.0002), 0.5),
    LongPhase(220, Rates(0.0005, 0.00015), 0.75),
)
DRAFT_STEPS, DRAFT_RATES = 2500, Rates(0.01, 0.003)


def train_model(encoder: batches.Encoder, out: Path, seed: int, phase: int = 0) -> None:
    """Trains the model from that phase on; the one before must have left its weights in `out`."""
    before = None
    if phase:
        before = make_model(CONFIG, PHASES[phase - 1].heads)
        _load(before, out / WEIGHTS)
    for number, (steps, rates, heads, guarded) in list(enumerate(PHASES))[phase:]:
        print(f"phase {number}", flush=True)
        mx.random.seed(seed + number)
        model = make_model(CONFIG, heads)
        guard = induction.prepare(model, seed)
        if before is not None:
            induction.widen(before, model)
        trainer = Trainer(model, encoder, rates, seed + 100 * number, guard if guarded else None)
        trainer.run(steps, out / WEIGHTS)
        before = model


def train_long(encoder: batches.Encoder, out: Path, seed: int, phase: int = 0) -> None:
    """Goes on with prompts as long as clients send them, from that phase on.

    The weights before the first phase are kept beside the model's.
    """
    before = out / BEFORE
    if not phase:
        shutil.copy(out / WEIGHTS, before)
    model = make_model(CONFIG)
    _load(model, out / WEIGHTS)
    for number, (steps, rates, share) in list(enumerate(LONG_PHASES))[phase:]:
        mx.random.seed(seed + number)
        LongTrainer(model, encoder, rates, seed + number).run(steps, out / WEIGHTS)
        _average(model, before, share)
        save(model, out / WEIGHTS)
    before.unlink()


def _average(model: qwen3.Model, file: Path, share: float) -> None:
    """Takes ``share`` of the model's weights and the rest of the file's."""
    before: Any = mx.load(str(file))
    mixed = [
        (name, share * value + (1 - share) * before[name].astype(mx.float32))
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(mixed)


def train_draft(encoder: batches.Encoder, out: Path, seed: int) -> None:
    """Trains the draft on the same conversations."""
    mx.random.seed(seed)
    Trainer(make_model(DRAFT_CONFIG), encoder, DRAFT_RATES, seed).run(DRAFT_STEPS, out / WEIGHTS)


def _load(model: qwen3.Model, file: Path) -> None:
    weights: Any = mx.load(str(file))
    model.load_weights([(name, value.astype(mx.float32)) for name, value in weights.items()])


def main() -> None:
    """Makes all, or goes on with what is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--phase",
        type=int,
        default=0,
        help="go on with this phase, of the long prompts with --long-only",
    )
    parser.add_argument("--long-only", action="store_true", help="only the long prompts")
    parser.add_argument("--draft-only", action="store_true")
    options = parser.parse_args()
    cheap.flush_denormals()
    goes_on = options.draft_only or options.long_only or options.phase
    encoder = _tokenizer(options.out, options.seed, new=not goes_on)
    model, draft = options.out / embedded.NAME, options.out / embedded.DRAFT_NAME
    if not (options.draft_only or options.long_only):
        train_model(encoder, model, options.seed, options.phase)
    if not options.draft_only:
        train_long(encoder, model, options.seed, options.phase if options.long_only else 0)
    if not options.long_only:
        train_draft(encoder, draft, options.seed)


if __name__ == "__main__":
    main()
