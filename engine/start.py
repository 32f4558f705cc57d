"""From options to a running engine: load, self-check, budget, drafts. Engine thread only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from . import device, embedded
from .calibration import calibrating
from .draft_costs import measuring
from .draft_model import fitting, why_not
from .engine import Engine
from .loader import Loaded, LoadError, Opened, Progress, filling, opening
from .model_memory import ModelMemory
from .network import Attention, is_stateful
from .options import Drafts, EngineOptions, offered
from .pieces import Pieces, Weights, finish
from .selfcheck import checking
from .speculation import Speculation
from .variant import NGRAM
from .weights import nbytes


class Started(NamedTuple):
    """A running engine, what it was made from, the bytes of all its weights, and its drafts."""

    engine: Engine
    loaded: Loaded
    weights: int
    drafts: Drafts


class _Parts(NamedTuple):
    """What an engine is made from."""

    loaded: Loaded
    attention: Attention
    draft: Loaded | None
    drafts: Drafts


def start_engine(options: EngineOptions, progress: Progress) -> Started:
    """Loads and checks a model, the only one. Raises LoadError, one line that says what to do."""
    memory = ModelMemory(None, options.kv_memory, several=False)
    return finish(starting(options, memory, progress), memory.settle)


def starting(options: EngineOptions, memory: ModelMemory, progress: Progress) -> Pieces[Started]:
    """Loads and checks a model in pieces. Raises LoadError, one line that says what to do.

    Who runs the pieces counts the ``Weights`` that they ask for once, for the model and its draft
    together; where it does not come to an end, nothing is left behind. ``options.kv_memory`` means
    nothing here: ``memory`` has it.
    """
    parts = yield from _loading(options, progress)
    engine = yield from _making(parts, options, memory, progress)
    device.clear_cache()
    loaded, _, draft, drafts = parts
    weights = nbytes(loaded.model) + (0 if draft is None else nbytes(draft.model))
    return Started(engine, loaded, weights, drafts)


def _loading(options: EngineOptions, progress: Progress) -> Pieces[_Parts]:
    """The model and its draft, in memory and checked."""
    opened = yield from _opening(options.model, options, progress)
    model, stateful = options.draft_model, is_stateful(opened.network)
    small = None
    if model is not None and model != NGRAM and not stateful:
        small = yield from _opening(model, options, progress)
    yield Weights(opened.nbytes + (0 if small is None else small.nbytes))
    loaded = yield from filling(opened, options.max_context, progress)
    progress("checking attention over lent blocks against mlx-lm")
    attention: Attention = "lent" if (yield from checking(loaded)) else "copied"
    if attention == "copied":
        progress("this model computes attention in its own way: prefixes are copied, not lent")
    drafts = _drafts(options, attention, stateful, progress)
    draft = None
    if small is not None and drafts.names:
        draft = yield from fitting(small, loaded, progress)
    return _Parts(loaded, attention, draft, drafts)


def _opening(model: str, options: EngineOptions, progress: Progress) -> Pieces[Opened]:
    return opening(
        model,
        dtype=options.dtype or _own_dtype(model),
        trust_remote_code=options.trust_remote_code,
        progress=progress,
    )


def _drafts(
    options: EngineOptions, attention: Attention, stateful: bool, progress: Progress
) -> Drafts:
    """What requests may choose."""
    names = offered(options.draft_model, options.draft_name)
    off = why_not(attention, stateful) if names else None
    if off is None:
        return Drafts(names)
    progress(f"drafts are off: {off}")
    return Drafts(off=off)


def _making(
    parts: _Parts, options: EngineOptions, memory: ModelMemory, progress: Progress
) -> Pieces[Engine]:
    """An engine that is ready to serve."""
    loaded, attention, draft, drafts = parts
    kv_memory, costs = memory.kv, None
    if drafts.names:
        progress("measuring what proposals cost")
        costs = yield from measuring(loaded, draft)
    engine = Engine(
        loaded,
        kv_memory=kv_memory,
        prefix_cache=options.prefix_cache,
        attention=attention,
        adapter_slots=options.adapter_slots,
        draft=draft,
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
        if costs is not None:
            engine.decoding.speculation = Speculation(
                options.num_draft_tokens, costs.verify, engine.drafter, costs.propose
            )
    except BaseException:  # a load that is given up ends here, too, by closing the generator
        engine.close()
        raise
    return engine


def _own_dtype(model: str) -> str | None:
    """The embedded model's type here: it is stored in half precision, which CPUs are slow at."""
    if Path(model).parent == embedded.path().parent and device.describe().backend == "cpu":
        return "float32"
    return None
