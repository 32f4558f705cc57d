"""Reads LoRA adapters, in mlx-lm's format and in PEFT's, and refuses what does not fit the model.

Runs on the engine thread, before the engine sees anything of an adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

MLX_WEIGHTS, PEFT_WEIGHTS = "adapters.safetensors", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
MOST_RANK = 1024
LINEAR = (nn.Linear, nn.QuantizedLinear)
EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)
PEFT_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "trainable_token_indices")


class AdapterError(Exception):
    """An adapter that cannot be used; one line that names the file and the reason."""


class LowRank(NamedTuple):
    """The update of one module: ``scale * x @ a @ b``.

    ``a`` is [in, rank], ``b`` is [rank, out]; of expert layers both have the experts in front,
    of embeddings ``a`` has a row for each token.
    """

    a: mx.array
    b: mx.array
    scale: float

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return int(self.b.shape[-2])

    @property
    def nbytes(self) -> int:
        """Bytes of both factors."""
        return int(self.a.nbytes + self.b.nbytes)


def read_adapter(path: Path, modules: Mapping[str, Any]) -> dict[str, LowRank]:
    """The updates of an adapter directory by the path of their module, all evaluated.

    ``modules`` are the base's own, by path. Raises AdapterError.
    """
    config = _read_config(path)
    peft = "peft_type" in config
    weights = _read_weights(path / (PEFT_WEIGHTS if peft else MLX_WEIGHTS))
    updates = _peft(path, config, weights, modules) if peft else _mlx(path, config, weights)
    if not updates:
        raise AdapterError(f"{path} holds no LoRA weights")
    for name, update in updates.items():
        _check(path, name, update, modules)
    mx.eval([(u.a, u.b) for u in updates.values()])
    finite = mx.stack([mx.isfinite(x).all() for u in updates.values() for x in (u.a, u.b)])
    if not bool(finite.all().item()):
        raise AdapterError(f"{path} holds weights that are not finite numbers")
    return updates


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise AdapterError(f"no such adapter directory: {path}")
    file = path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(f"{path} is no adapter: it has no adapter_config.json") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot read {file}: {_line(error)}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{file} is not a JSON object")
    return config


def _read_weights(file: Path) -> dict[str, mx.array]:
    if not file.is_file():
        others = [p.name for p in file.parent.iterdir() if p.suffix in (".npz", ".bin", ".gguf")]
        found = f" (only {others[0]}, which is not read)" if others else ""
        raise AdapterError(f"{file.parent} has no {file.name}{found}")
    try:
        loaded = mx.load(str(file))
    except (RuntimeError, ValueError) as error:
        raise AdapterError(f"cannot read {file}: {_line(error)}") from error
    assert isinstance(loaded, dict)
    return loaded


# mlx-lm's format


def _mlx(path: Path, config: dict[str, Any], weights: dict[str, mx.array]) -> dict[str, LowRank]:
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise AdapterError(
            f"{path} is a fine-tune of type {kind!r}, not LoRA: fuse it into its base with "
            "mlx_lm.fuse and serve the result as a model of its own"
        )
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise AdapterError(f"{path / 'adapter_config.json'} has no lora_parameters.scale")
    pairs = _pairs(path, weights, ".lora_a", ".lora_b")
    updates = {}
    for name, (a, b) in pairs.items():
        if a.ndim == 3 and b.ndim == 3:  # experts: [E, rank, in] and [E, out, rank]
            a, b = mx.contiguous(a.swapaxes(1, 2)), mx.contiguous(b.swapaxes(1, 2))
        updates[name] = LowRank(a, b, float(scale))
    return updates


# PEFT's format


def _peft(
    path: Path, config: dict[str, Any], weights: dict[str, mx.array], modules: Mapping[str, Any]
) -> dict[str, LowRank]:
    kind = config["peft_type"]
    if kind != "LORA":
        raise AdapterError(f"{path} is a PEFT adapter of type {kind!r}; only LORA is served")
    for key in PEFT_UNSUPPORTED:
        if config.get(key):
            raise AdapterError(f"{path} uses {key}, which is not served: merge it into its base")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path} trains biases, which is not served: merge it into its base")
    pairs = _pairs(path, weights, ".lora_A.weight", ".lora_B.weight")
    updates = {}
    for theirs, (a, b) in pairs.items():
        name = _own_name(path, theirs, modules)
        scale = _peft_scale(path, config, theirs, int(a.shape[0]))
        updates[name] = LowRank(mx.contiguous(a.T), mx.contiguous(b.T), scale)
    return updates


def _own_name(path: Path, theirs: str, modules: Mapping[str, Any]) -> str:
    """The model's name of a PEFT module; wrapped models put something in front of it."""
    name = theirs.removeprefix(PEFT_PREFIX)
    if name in modules:
        return name
    ending = [known for known in modules if known.endswith("." + name)]
    if len(ending) != 1:
        raise AdapterError(f"{path}: the model has no module {name}; is this another base's?")
    return ending[0]


def _peft_scale(path: Path, config: dict[str, Any], name: str, rank: int) -> float:
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    wanted = _by_pattern(config.get("rank_pattern"), name, config.get("r"))
    if type(alpha) not in (int, float) or wanted != rank:
        raise AdapterError(f"{path / 'adapter_config.json'} does not fit the weights of {name}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Any, name: str, default: Any) -> Any:
    """PEFT's per-module override: the first pattern that ends the name."""
    for pattern, value in (patterns or {}).items():
        if name.endswith("." + pattern) or re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default


# both


def _pairs(
    path: Path, weights: dict[str, mx.array], first: str, second: str
) -> dict[str, tuple[mx.array, mx.array]]:
    """The two factors of each module; every tensor must belong to a pair."""
    names = {n.removesuffix(first) for n in weights if n.endswith(first)}
    expected = {n + suffix for n in names for suffix in (first, second)}
    if odd := sorted(expected ^ set(weights)):
        raise AdapterError(f"{path}: {odd[0]} is missing or is no part of a LoRA update")
    return {n: (weights[n + first], weights[n + second]) for n in sorted(names)}


def _check(path: Path, name: str, update: LowRank, modules: Mapping[str, Any]) -> None:
    module = modules.get(name)
    if module is None:
        raise AdapterError(f"{path}: the model has no module {name}; is this another base's?")
    if not isinstance(module, (*LINEAR, *EXPERTS, *EMBEDDING)):
        raise AdapterError(f"{path}: {name} is a {type(module).__name__}, which takes no LoRA")
    for factor in (update.a, update.b):
        if not mx.issubdtype(factor.dtype, mx.floating):
            raise AdapterError(f"{path}: {name} has weights of type {factor.dtype}")
    rank = update.b.shape[-2] if update.b.ndim >= 2 else 0
    if not 0 < rank <= MOST_RANK:
        raise AdapterError(f"{path}: {name} has rank {rank}; 1 to {MOST_RANK} can be served")
    a, b = shapes(module, rank)
    if update.a.shape != a or update.b.shape != b:
        raise AdapterError(
            f"{path}: {name} has shapes {update.a.shape} and {update.b.shape}, the model needs "
            f"{a} and {b}; is this another base's adapter?"
        )


def shapes(module: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the two factors that fit ``module``."""
    if isinstance(module, EXPERTS):
        experts = module.num_experts
        return (experts, module.input_dims, rank), (experts, rank, module.output_dims)
    rows, columns = module.weight.shape
    if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        columns = columns * 32 // module.bits
    if isinstance(module, EMBEDDING):
        return (rows, rank), (rank, columns)
    return (columns, rank), (rank, rows)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
