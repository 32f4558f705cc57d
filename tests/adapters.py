"""LoRA adapters with random weights, in mlx-lm's format and in PEFT's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")


def make_adapter(
    model_dir: Path,
    out: Path,
    *,
    seed: int = 0,
    rank: int = 8,
    scale: float = 2.0,
    keys: Sequence[str] | None = ATTENTION,
    layers: int = 64,
    strength: float = 0.3,
) -> Path:
    """Writes an adapter as ``mlx_lm.lora`` would, with random factors, and returns its folder."""
    model, _ = load(str(model_dir))
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    if keys is not None:
        parameters["keys"] = list(keys)
    linear_to_lora_layers(model, layers, parameters)
    names = {n: v for n, v in tree_flatten(model.parameters()) if ".lora_" in n}
    mx.random.seed(seed)
    weights = {}
    for name, value in sorted(names.items()):
        width = value.shape[-1] if value.ndim == 3 else value.shape[0]
        factor = strength if name.endswith("lora_b") else width**-0.5
        weights[name] = mx.random.normal(value.shape) * factor
    config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    return write(out, "adapters.safetensors", weights, config)


def to_peft(adapter: Path, out: Path, **changes: Any) -> Path:
    """The same adapter as PEFT would write it."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank, scale = config["lora_parameters"]["rank"], config["lora_parameters"]["scale"]
    weights = {}
    for name, value in mx.load(str(adapter / "adapters.safetensors")).items():
        theirs = name.replace(".lora_a", ".lora_A.weight").replace(".lora_b", ".lora_B.weight")
        weights["base_model.model." + theirs] = mx.contiguous(value.T)
    peft = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        **changes,
    }
    return write(out, "adapter_model.safetensors", weights, peft)


def write(out: Path, name: str, weights: dict[str, mx.array], config: dict[str, Any]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(out / name), weights)
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out
