"""Draft models for random models: the target itself, with some of its weights blurred."""

from __future__ import annotations

import functools

import mlx.core as mx
from mlx.utils import tree_map

from engine.drafting import Curve
from engine.engine import Engine
from engine.loader import Loaded
from engine.speculation import Speculation

from .models import load_model, model_dir

NAME = "draft"
FREE = Curve((1, 64), (1e-9, 64e-9), 0.0)  # seconds: a pass that costs next to nothing
FLAT = Curve((1, 64), (1.0, 1.0), 0.0)  # a pass that costs the same however many tokens it has


@functools.cache
def blurred(family: str, noise: float) -> Loaded:
    """The family's model, each weight off by ``noise`` of its tensor's deviation."""
    draft = load_model(model_dir(family))
    if noise:
        mx.random.seed(5)
        spoil = lambda w: w + noise * mx.std(w) * mx.random.normal(w.shape).astype(w.dtype)
        draft.model.update(tree_map(spoil, draft.model.parameters()))
        mx.eval(draft.model.parameters())
    return draft


def always_worth_it(engine: Engine, most: int = 4) -> None:
    """Lets the engine draft as if proposals cost nothing."""
    engine.decoding.speculation = Speculation(most, FLAT, engine.drafter, FREE)
