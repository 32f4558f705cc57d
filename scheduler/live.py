"""A loaded model: its engine and scheduler, and what the event loop may know of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine.engine import Engine
from engine.generation_config import sampling_defaults
from engine.model_memory import ModelMemory
from engine.options import EngineOptions
from engine.pieces import Pieces
from engine.start import Started, starting
from engine.tokenizer import Tokenizer

from .info import ModelConfig, ModelInfo, ServiceConfig
from .publishing import going_public
from .scheduler import Scheduler
from .stats import SchedulerStats


class LoadedModel(NamedTuple):
    """What it takes to make requests: facts, text, and the longest prompt that ever fits."""

    info: ModelInfo
    tokenizer: Tokenizer
    most_tokens: int


class Live(NamedTuple):
    """A model in memory, for the engine thread alone; ``weights`` in bytes."""

    scheduler: Scheduler
    engine: Engine
    weights: int
    facts: LoadedModel


class AdapterFiles(NamedTuple):
    """An adapter that a model has whenever it is loaded."""

    path: str
    pinned: bool = False


def going_live(
    config: ModelConfig,
    adapters: dict[str, AdapterFiles],
    service: ServiceConfig,
    memory: ModelMemory,
    stats: SchedulerStats,
    progress: Callable[[str], None],
) -> Pieces[Live]:
    """Loads a model in pieces. Raises LoadError, AdapterError, and leaves nothing behind then."""
    options = EngineOptions(
        model=config.model,
        prefix_cache=service.prefix_cache,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        max_context=config.max_context,
        adapter_slots=service.adapter_slots,
        draft_model=config.draft_model,
        draft_name=config.draft_name,
        num_draft_tokens=config.num_draft_tokens,
    )
    started = yield from starting(options, memory, progress)
    engine = started.engine
    try:
        for name, files in list(adapters.items()):
            yield None
            progress(f"reading adapter {name}")
            engine.adapters.register(name, Path(files.path), pinned=files.pinned)
        tokenizer = Tokenizer(started.loaded.tokenizer, system_boundary=engine.stateful)
        yield from going_public(config.name, started, tokenizer, service, progress)
    except BaseException:  # a load that is given up ends here, too, by closing the generator
        engine.close()
        raise
    scheduler = Scheduler(
        engine,
        max_rows=service.max_rows,
        stall_target=service.stall_target_ms / 1000,
        stats=stats,
    )
    facts = LoadedModel(_info(config, started), tokenizer, engine.budget.most_tokens)
    return Live(scheduler, engine, started.weights, facts)


def _info(config: ModelConfig, started: Started) -> ModelInfo:
    engine, loaded = started.engine, started.loaded
    return ModelInfo(
        name=config.name,
        root=config.model,
        max_model_len=loaded.max_context,
        vocab_size=loaded.vocab_size,
        eos_token_ids=loaded.eos_token_ids,
        attention=engine.attention,
        created=int(time.time()),
        kv_memory=engine.budget.limit,
        defaults=sampling_defaults(loaded.path),
        drafts=started.drafts,
    )
