"""Tiny models with random weights, one for each kind of attention and cache that we serve.

Made by code from a seed, as directories that ``mlx_lm.load`` opens. Greedy decoding on them is
decisive, so that replies can be compared token by token, and depends on the whole prompt.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from engine.loader import Loaded, load

VOCABULARY = 512
CONTEXT = 8192
WINDOW = 32
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
# Where layers of two kinds alternate there is one more, so that no layer's number is its place
# among those of its kind, and one kind has two of them.
MIXED = {"num_hidden_layers": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "gemma3": {
        **MIXED,
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    "gpt_oss": {
        **MIXED,
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": WINDOW,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": CONTEXT // 2,
        },
    },
    "qwen3_next": {
        **MIXED,
        "model_type": "qwen3_next",
        "architectures": ["Qwen3NextForCausalLM"],
        "full_attention_interval": 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "partial_rotary_factor": 0.5,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 64,
    },
}

# Of queries and of keys: their product then has a standard deviation of about 3, so that some
# tokens of a long prompt stand out and none is without weight.
SHARPNESS = 1.75


def make(family: str, out: Path, seed: int = 0, **overrides: Any) -> Path:
    """Writes a model directory and returns it; equal arguments give equal weights.

    ``overrides`` replace or extend what ``config.json`` says; ``KeyError`` for no such family.
    """
    config = COMMON | CONFIGS[family] | overrides
    out.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(out / "model.safetensors"), _weights(config, seed), {"format": "mlx"})
    _tokenizer().save(str(out / "tokenizer.json"))
    _write(out / "config.json", config)
    _write(out / "generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    _write(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": config["max_position_embeddings"],
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
        },
    )
    return out


@functools.cache
def model_dir(family: str) -> Path:
    """The family's model in a directory that lives as long as the process."""
    parent = tempfile.mkdtemp(prefix="commons-models-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    return make(family, Path(parent) / f"tiny-{family}")


@functools.cache
def loaded(family: str) -> Loaded:
    """The family's model as the engine loads it; every engine of a test process may share it."""
    return load_model(model_dir(family))


def load_model(path: Path) -> Loaded:
    """A model directory as the engine loads it."""
    return load(
        str(path), dtype=None, trust_remote_code=False, max_context=None, progress=lambda _: None
    )


def _weights(config: dict[str, Any], seed: int) -> dict[str, mx.array]:
    """Float32 values for every parameter, under the names that the model class itself uses."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    rng = np.random.default_rng(seed)
    shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    return {
        name: mx.array(_draw(name, shapes[name], config, rng).astype(np.float32))
        for name in sorted(shapes)
    }


def _draw(
    name: str, shape: tuple[int, ...], config: dict[str, Any], rng: np.random.Generator
) -> np.ndarray:
    module, _, kind = name.rpartition(".")
    module = module.rpartition(".")[2]
    if kind == "A_log":  # decay per token: the recurrent state remembers 15 to 500 tokens
        return np.log(rng.uniform(0.003, 0.1, shape))
    if kind == "dt_bias":
        return rng.normal(0.0, 0.5, shape)
    if kind == "sinks":  # near the log-sum-exp of some hundred scores, so that they matter
        return rng.normal(6.0, 2.0, shape)
    if kind in ("bias", "e_score_correction_bias"):
        return rng.normal(0.0, 0.1, shape)
    if "norm" in module:
        gain = SHARPNESS if module in ("q_norm", "k_norm") else 1.0
        value = gain * (1.0 + rng.normal(0.0, 0.05, shape))
        return value - 1.0 if config["model_type"] == "gemma3_text" else value
    value = rng.standard_normal(shape)
    if module == "embed_tokens":
        return value / shape[-1] ** 0.5 if config["model_type"] == "gemma3_text" else value
    if module == "lm_head":  # a row of zeros has the logit 0: never the best of many
        value[: len(SPECIAL)] = 0.0
    if module == "conv1d":
        return value * shape[1] ** -0.5
    sharp = module in ("q_proj", "k_proj", "q_b_proj", "embed_q")
    return value * (SHARPNESS if sharp else 1.0) * shape[-1] ** -0.5


@functools.cache
def _tokenizer() -> Tokenizer:
    """Byte-level BPE over made-up words; the special tokens have the ids 0, 1, 2."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    tokenizer.train_from_iterator((" ".join(rng.choices(words, k=20)) for _ in range(200)), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY, "the text holds too few pairs to merge"
    return tokenizer


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
