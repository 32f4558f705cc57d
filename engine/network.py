"""A loaded model as steps run it: what each layer keeps, and one forward pass over a plan.

Owned by the engine thread. Knows nothing of rows' lives, of memory or of sampling.
"""

from __future__ import annotations

from typing import Any, Literal

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from .attention import LentLayer, Plan, install
from .slabs import LayerShape
from .states import most_bytes

Attention = Literal["lent", "copied"]


class Network:
    """A model and its layers' caches.

    ``attention`` "lent" reads KV through the step's plan; "copied" gives each row mlx-lm's own
    caches, for models that compute attention in their own way. ``first`` is the place of its
    first layer among those that slabs and blocks hold.
    """

    def __init__(self, model: Any, attention: Attention, first: int = 0) -> None:
        install()
        template = _probe(model)
        by_token = [i for i, c in enumerate(template) if type(c) is KVCache]
        self.model = model
        self._lent = {
            layer: LentLayer(first + i) for i, layer in enumerate(by_token) if attention == "lent"
        }
        self.own = [i for i in range(len(template)) if i not in self._lent]
        self.lends = bool(self._lent)
        self.stateful = len(by_token) < len(template)
        self.shapes = [LayerShape.of(template[i]) for i in by_token]
        self.state_bytes = sum(
            most_bytes(template[i]) for i in self.own if type(template[i]) is not KVCache
        )
        self.batchable = all(hasattr(template[i], "merge") for i in self.own)

    def fresh_states(self) -> dict[int, Any]:
        """Empty caches, by layer, of all layers that no plan serves."""
        if not self.own:
            return {}
        fresh = make_prompt_cache(self.model)
        return {i: fresh[i] for i in self.own}

    def forward(self, ids: mx.array, plan: Plan | None, states: dict[int, Any]) -> mx.array:
        """The model's logits [B, L, V] for ``ids`` [B, L], lazy."""
        for lent in self._lent.values():
            lent.plan = plan
        total = len(self._lent) + len(self.own)
        caches = [self._lent[i] if i in self._lent else states[i] for i in range(total)]
        logits: mx.array = self.model(ids, cache=caches)
        for lent in self._lent.values():
            lent.plan = None  # a plan holds on to slabs and blocks
        return logits


def is_stateful(model: Any) -> bool:
    """Whether some layers keep what cannot be cut at a token."""
    return any(type(cache) is not KVCache for cache in make_prompt_cache(model))


def _probe(model: Any) -> list[Any]:
    """The model's caches after one token: what each layer keeps, in which shape."""
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=caches))
    return list(caches)
