"""How many prompt tokens fit into a span of time: a cost model fitted while serving.

Knows nothing of requests. A chunk of L tokens behind a context of C costs about
a + b*L + c*L*(C + L/2) seconds: fixed costs, the weights' products, and attention.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FORGET = 0.97  # weight of the past per new sample: about 30 samples are remembered


class PrefillPace:
    """Recursive least squares over (1, L, L * mean context), with forgetting."""

    def __init__(self) -> None:
        # Scales bring the three features near 1, so that one ridge serves all.
        self._scale = np.array([1.0, 256.0, 256.0 * 4096.0])
        self._gram = np.eye(3) * 1e-4
        self._moment = np.array([0.0, 0.02, 0.005]) * 1e-4
        self._weights = self._fitted()
        self._tried = 0

    def record(self, tokens: int, context: int, seconds: float) -> None:
        """Learns that a chunk of ``tokens`` behind ``context`` tokens took ``seconds``."""
        x = self._features(tokens, context)
        self._gram = FORGET * self._gram + np.outer(x, x)
        self._moment = FORGET * self._moment + x * seconds
        self._weights = self._fitted()
        self._tried = max(self._tried, tokens)

    def seconds(self, tokens: int, context: int) -> float:
        """Predicted time of a chunk."""
        return float(self._features(tokens, context) @ self._weights)

    def tokens(self, seconds: float, context: int, *, least: int, most: int) -> int:
        """The largest chunk predicted to take at most ``seconds``, within [least, most].

        Never more than twice what was tried before: the model is not trusted far beyond that.
        """
        low, high = least, max(least, min(most, 2 * self._tried))
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(middle, context) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _features(self, tokens: int, context: int) -> npt.NDArray[np.float64]:
        work = tokens * (context + tokens / 2)
        features: npt.NDArray[np.float64] = np.array([1.0, float(tokens), work]) / self._scale
        return features

    def _fitted(self) -> npt.NDArray[np.float64]:
        ridge = np.eye(3) * 1e-9
        weights = np.linalg.solve(self._gram + ridge, self._moment)
        return np.asarray(weights, dtype=np.float64).clip(0.0, None)
