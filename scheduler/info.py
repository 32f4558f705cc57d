"""What a service is told to serve, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.draft_model import Drafts
from engine.engine import ADAPTER_SLOTS
from engine.params import SamplingParams
from engine.start import NUM_DRAFT_TOKENS


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What is served and within which limits; ``kv_memory`` in bytes, None: as recommended.

    ``adapters`` are names and directories. ``draft_model`` is as in ``EngineOptions``, and
    ``draft_name`` how requests name it.
    """

    model: str
    served_model_name: str
    kv_memory: int | None = None
    prefix_cache: bool = True
    max_rows: int = 64
    max_queue: int = 256
    stall_target_ms: float = 100.0
    dtype: str | None = None
    trust_remote_code: bool = False
    max_context: int | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    adapter_slots: int = ADAPTER_SLOTS
    draft_model: str | None = None
    draft_name: str | None = None
    num_draft_tokens: int = NUM_DRAFT_TOKENS


class ModelInfo(NamedTuple):
    """The served model as ``/v1/models`` shows it.

    ``created`` is in Unix seconds, ``kv_memory`` in bytes; ``defaults`` hold where a request
    does not say how tokens are chosen.
    """

    name: str
    root: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    attention: Literal["lent", "copied"]
    created: int
    kv_memory: int
    defaults: SamplingParams
    drafts: Drafts = Drafts()


class AdapterInfo(NamedTuple):
    """An adapter as ``/v1/models`` shows it; ``created`` in Unix seconds."""

    name: str
    path: str
    created: int


class Health(NamedTuple):
    """The state of the service; ``heartbeat_age`` in seconds."""

    alive: bool
    loaded: bool
    ready: bool
    draining: bool
    heartbeat_age: float
    error: str | None
    running: int
    waiting: int
