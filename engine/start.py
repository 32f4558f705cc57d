"""From options to a running engine: load, self-check, budget. Engine thread only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import device, embedded
from .calibration import calibrating
from .engine import ADAPTER_SLOTS, Attention, Engine
from .loader import Loaded, LoadError, loading
from .model_memory import ModelMemory
from .pieces import Pieces, finish
from .selfcheck import checking
from .weights import nbytes


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to load and how; ``kv_memory`` in bytes, None: what the device recommends."""

    model: str
    kv_memory: int | None = None
    prefix_cache: bool = True
    dtype: str | None = None
    trust_remote_code: bool = False
    max_context: int | None = None
    adapter_slots: int = ADAPTER_SLOTS


class Started(NamedTuple):
    """A running engine, what it was made from, and the bytes of its weights."""

    engine: Engine
    loaded: Loaded
    weights: int


def start_engine(options: EngineOptions, progress: Callable[[str], None]) -> Started:
    """Loads and checks a model, the only one. Raises LoadError, one line that says what to do."""
    memory = ModelMemory(None, options.kv_memory, several=False)
    return finish(starting(options, memory, progress), memory.settle)


def starting(
    options: EngineOptions, memory: ModelMemory, progress: Callable[[str], None]
) -> Pieces[Started]:
    """Loads and checks a model in pieces. Raises LoadError, one line that says what to do.

    Who runs the pieces counts the ``Weights`` that they ask for; where it does not come to an
    end, nothing is left behind. ``options.kv_memory`` means nothing here: ``memory`` has it.
    """
    loaded = yield from loading(
        options.model,
        dtype=options.dtype or _own_dtype(options.model),
        trust_remote_code=options.trust_remote_code,
        max_context=options.max_context,
        progress=progress,
    )
    kv_memory = memory.kv
    progress("checking attention over lent blocks against mlx-lm")
    attention: Attention = "lent" if (yield from checking(loaded)) else "copied"
    if attention == "copied":
        progress("this model computes attention in its own way: prefixes are copied, not lent")
    engine = Engine(
        loaded,
        kv_memory=kv_memory,
        prefix_cache=options.prefix_cache,
        attention=attention,
        adapter_slots=options.adapter_slots,
    )
    try:
        yield None
        if attention == "lent":
            engine.keeping = yield from calibrating(engine)
        if not engine.fits(1):
            least = engine.budget.least_bytes(1) / 1e6
            raise LoadError(
                f"--kv-memory is too small for this model: give at least {math.ceil(least)}MB"
            )
    except BaseException:
        engine.close()
        raise
    device.clear_cache()
    return Started(engine, loaded, nbytes(loaded.model))


def _own_dtype(model: str) -> str | None:
    """The embedded model's type here: it is stored in half precision, which CPUs are slow at."""
    if Path(model) == embedded.path() and device.describe().backend == "cpu":
        return "float32"
    return None
