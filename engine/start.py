"""From options to a running engine: load, self-check, budget. Engine thread only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlx.utils import tree_reduce

from . import device, embedded
from .calibration import calibrate
from .draft_costs import propose_costs, verify_costs
from .draft_model import Drafts, load_draft, offered, why_not
from .engine import ADAPTER_SLOTS, Engine
from .loader import Loaded, LoadError, load
from .network import Attention, is_stateful
from .selfcheck import lends_correctly
from .speculation import Speculation
from .variant import NGRAM

NUM_DRAFT_TOKENS = 4  # proposed for a row at once, at most


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to load and how; ``kv_memory`` in bytes, None: what the device recommends.

    ``draft_model`` is a directory or repository, "ngram" for prompt lookup, or None.
    """

    model: str
    kv_memory: int | None = None
    prefix_cache: bool = True
    dtype: str | None = None
    trust_remote_code: bool = False
    max_context: int | None = None
    adapter_slots: int = ADAPTER_SLOTS
    draft_model: str | None = None
    draft_name: str | None = None
    num_draft_tokens: int = NUM_DRAFT_TOKENS


class Started(NamedTuple):
    """A running engine, what it was made from, the bytes of its weights, and its drafts."""

    engine: Engine
    loaded: Loaded
    weights: int
    drafts: Drafts


def start_engine(options: EngineOptions, progress: Callable[[str], None]) -> Started:
    """Loads and checks a model. Raises LoadError with one line that says what to do."""
    loaded = load(
        options.model,
        dtype=options.dtype or _own_dtype(options.model),
        trust_remote_code=options.trust_remote_code,
        max_context=options.max_context,
        progress=progress,
    )
    progress("checking attention over lent blocks against mlx-lm")
    attention: Attention = "lent" if lends_correctly(loaded) else "copied"
    if attention == "copied":
        progress("this model computes attention in its own way: prefixes are copied, not lent")
    draft, drafts = _drafts(options, loaded, attention, progress)
    weights = _bytes(loaded) + (_bytes(draft) if draft is not None else 0)
    kv_memory = options.kv_memory or device.default_kv_memory(weights)
    device.setup(weights, kv_memory)
    engine = Engine(
        loaded,
        kv_memory=kv_memory,
        prefix_cache=options.prefix_cache,
        attention=attention,
        adapter_slots=options.adapter_slots,
        draft=draft,
    )
    if attention == "lent":
        engine.keeping = calibrate(engine)
    if not engine.fits(1):
        least = engine.budget.least_bytes(1) / 1e6
        raise LoadError(
            f"--kv-memory is too small for this model: give at least {math.ceil(least)}MB"
        )
    if drafts.names:
        progress("measuring what proposals cost")
        engine.decoding.speculation = Speculation(
            options.num_draft_tokens,
            verify_costs(engine),
            engine.drafter,
            propose_costs(engine) if draft is not None else None,
        )
    device.clear_cache()
    return Started(engine, loaded, weights, drafts)


def _drafts(
    options: EngineOptions, loaded: Loaded, attention: Attention, progress: Callable[[str], None]
) -> tuple[Loaded | None, Drafts]:
    """The draft model that was asked for, and what requests may choose. Raises LoadError."""
    model = options.draft_model
    if model is None:
        return None, Drafts()
    off = why_not(attention, is_stateful(loaded.model))
    if off is not None:
        progress(f"drafts are off: {off}")
        return None, Drafts(off=off)
    names = offered(model, options.draft_name)
    if model == NGRAM:
        return None, Drafts(names)
    draft = load_draft(
        model,
        loaded,
        dtype=options.dtype or _own_dtype(model),
        trust_remote_code=options.trust_remote_code,
        progress=progress,
    )
    return draft, Drafts(names)


def _bytes(loaded: Loaded) -> int:
    return int(tree_reduce(lambda total, x: total + x.nbytes, loaded.model.parameters(), 0))


def _own_dtype(model: str) -> str | None:
    """The embedded model's type here: it is stored in half precision, which CPUs are slow at."""
    if Path(model).parent == embedded.path().parent and device.describe().backend == "cpu":
        return "float32"
    return None
