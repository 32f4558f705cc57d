"""How a model's authors want its tokens chosen where a request does not say."""

from __future__ import annotations

import json
from pathlib import Path

from .params import SamplingParams

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(directory: Path) -> SamplingParams:
    """The settings in ``generation_config.json``; OpenAI's where it is missing or has none."""
    try:
        config = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return SamplingParams()
    if not isinstance(config, dict):
        return SamplingParams()
    found = {n: config[n] for n in NUMBERS if type(config.get(n)) in (int, float)}
    top_k = config.get("top_k")
    greedy = config.get("do_sample") is False
    return SamplingParams(
        temperature=0.0 if greedy else float(found.get("temperature", 1.0)),
        top_p=float(found.get("top_p", 1.0)),
        top_k=top_k if type(top_k) is int and top_k > 0 else 0,
        min_p=float(found.get("min_p", 0.0)),
        repetition_penalty=float(found.get("repetition_penalty", 1.0)),
    )
