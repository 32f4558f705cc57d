"""Times of bare prefills, the floor under a time to first token: no HTTP, no text, no cache.

Run as a process of its own (``python -m deploy.loadtest.bare MODEL_DIR CACHED:NEW ...``) so that it
gets the same environment as a server. Prints a JSON list of seconds, one per argument.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import KVCache

CHUNK = 2048
ROUNDS = 3


class Prefix:
    """A model and a KV cache of a chosen length, as plain as mlx-lm has it."""

    def __init__(self, model: object) -> None:
        self._model = model
        self.layers = [KVCache() for _ in model.layers]

    def fill(self, length: int) -> float:
        """Brings the cache to ``length`` tokens; the seconds that the new ones took."""
        held = self.layers[0].offset
        for layer in self.layers:
            layer.trim(max(0, held - length))
        if length <= held:
            return 0.0
        tokens = mx.random.randint(3, self._model.args.vocab_size, (1, length - held))
        mx.eval(tokens)
        start = time.perf_counter()
        for at in range(0, length - held, CHUNK):
            logits = self._model(tokens[:, at : at + CHUNK], cache=self.layers)
            mx.eval([layer.state for layer in self.layers])
        mx.eval(mx.argmax(logits[:, -1], axis=-1))
        return time.perf_counter() - start

    def time(self, cached: int, new: int) -> float:
        """Seconds to compute ``new`` tokens behind ``cached`` ones: the best of some rounds, of
        one round where they are many."""
        times = []
        for _ in range(ROUNDS if new <= CHUNK else 1):
            self.fill(cached)
            times.append(self.fill(cached + new))
        return min(times)


def main() -> None:
    """Measures each CACHED:NEW pair of the command line."""
    parser = argparse.ArgumentParser(description="time bare prefills")
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", nargs="+", metavar="CACHED:NEW")
    arguments = parser.parse_args()
    model, _ = load(str(arguments.model))
    pairs = [tuple(int(n) for n in pair.split(":")) for pair in arguments.pairs]
    prefix = Prefix(model)
    prefix.fill(512)  # the first pass through a model also sets it up
    print(json.dumps([round(prefix.time(cached, new), 4) for cached, new in pairs]))


if __name__ == "__main__":
    main()
