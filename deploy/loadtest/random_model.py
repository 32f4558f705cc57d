"""A small chat model with random weights (Qwen3 shape, float32) that any MLX server loads.

Its replies survive a round trip through text: greedy decoding can only choose tokens that are a
whole word with the space after it, and the tokenizer splits text at exactly these places. So the
next turn's prompt starts with the very tokens of the last reply, as with a trained model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from server.bench_text import make_text

VOCABULARY = 4096
CONTEXT = 131072
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = r"[A-Za-z0-9_]+ ?|[^A-Za-z0-9_\s]+ ?|\s+"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(
    out: Path,
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
) -> Path:
    """Writes the model directory ``out`` and returns it; equal arguments give equal files."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "rms_norm_eps": 1e-6,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "rope_theta": 1e6,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "torch_dtype": "float32",
    }
    weights = _random_weights(config, _words(tokenizer), seed)
    mx.save_safetensors(str(out / "model.safetensors"), weights, {"format": "mlx"})
    tokenizer.save(str(out / "tokenizer.json"))
    _write(out / "config.json", config)
    _write(out / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
    _write(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": CONTEXT,
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
        },
    )
    return out


@contextmanager
def chosen(about: str, **shape: int) -> Iterator[tuple[Path, Path]]:
    """The model that the command line names, by default a random one, and a scratch folder."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("model", nargs="?", type=Path, help="default: one with random weights")
    named = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        yield named or make(scratch / "random-qwen3", **shape), scratch


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (make_text(f"vocabulary {i}", 20_000) for i in range(100))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _words(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that are a word and a space and are found again in any text."""
    found = []
    for token in range(len(SPECIAL), tokenizer.get_vocab_size()):
        text = tokenizer.decode([token])
        if text[:-1].isalpha() and text[-1] == " " and tokenizer.encode(text).ids == [token]:
            found.append(token)
    assert len(found) >= 100, "the vocabulary holds too few whole words"
    return found


def _random_weights(config: dict, words: list[int], seed: int) -> dict[str, mx.array]:
    """Weights with pointed attention, so that what is read of the prompt decides the reply."""
    mx.random.seed(seed)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if value.ndim != 2:
            weights[name] = value
            continue
        gain = 3.0 if "q_proj" in name or "k_proj" in name else 1.0
        scale = 1.0 if "embed_tokens" in name else gain * value.shape[-1] ** -0.5
        weights[name] = mx.random.normal(value.shape) * scale
    # A row of zeros has the logit 0, which the best of many random ones always exceeds.
    can_win = mx.zeros((config["vocab_size"], 1))
    can_win[mx.array(words)] = 1.0
    weights["lm_head.weight"] = weights["lm_head.weight"] * can_win
    return weights


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """``python -m deploy.loadtest.random_model OUT_DIR``."""
    parser = argparse.ArgumentParser(description="write a small random-weight chat model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    print(make(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
