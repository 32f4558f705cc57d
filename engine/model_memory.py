"""How the memory is divided between the weights of all loaded models and their KV.

Owned by the engine thread.
"""

from __future__ import annotations

from . import device
from .kv_memory import KvMemory
from .loader import LoadError


class ModelMemory:
    """Bytes for weights and for KV; the first model, which stays, settles how many each.

    ``total`` bounds both together, ``kv`` the KV alone; None: as the device recommends.
    ``several`` tells that other models may be loaded beside the first one. Then KV gets, where
    nothing is said, half of what that one leaves.
    """

    def __init__(self, total: int | None, kv: int | None, *, several: bool) -> None:
        # Asked now: on the CPU it is the free memory that counts, before it holds any weights.
        self._total = total or (device.default_memory() if several else None)
        self._given = total is not None
        self._kv_bytes = kv
        self._several = several
        self._kv: KvMemory | None = None
        self.weights = 0
        self.weights_limit: int | None = None

    @property
    def kv(self) -> KvMemory:
        """The memory for KV; first asked for when the first model's weights are in memory."""
        if self._kv is None:
            self._kv = KvMemory(self._kv_bytes or device.default_kv_memory(self.weights))
            device.setup(self.weights, self._kv.limit)
        return self._kv

    def settle(self, weights: int) -> None:
        """Divides the memory, given what the first model's weights will take. Raises LoadError."""
        self.weights = weights
        if self._total is None:
            return
        left = self._total - weights
        kv = self._kv_bytes or (left // 2 if self._several else left)
        if self._given and not 0 < kv <= left:
            raise LoadError(
                f"--memory is too small: the weights of this model take {size(weights)}, "
                "and KV needs room beside them"
            )
        self._kv_bytes = kv if self._given or self._kv_bytes else max(kv, device.LEAST_KV)
        self.weights_limit = max(weights, self._total - self._kv_bytes)

    def lacking(self, weights: int) -> int:
        """How many bytes have to be given back before ``weights`` more fit; 0 or less: none."""
        limit = self.weights_limit
        return self.weights + weights - limit if limit is not None else 0

    def take(self, weights: int) -> None:
        """Counts the weights of one more model."""
        self.weights += weights
        device.setup(self.weights, self.kv.limit)

    def give_back(self, weights: int) -> None:
        """Counts the weights of a model no longer, and gives what it had back to the system."""
        self.weights -= weights
        device.setup(self.weights, self.kv.limit)
        device.clear_cache()


def size(nbytes: int) -> str:
    """Bytes as people write them."""
    unit, factor = ("GB", 1e9) if nbytes >= 1e9 else ("MB", 1e6)
    return f"{nbytes / factor:.1f} {unit}"
