"""What a service is told to serve, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from engine.options import ADAPTER_SLOTS, NUM_DRAFT_TOKENS, Drafts, offered
from engine.params import SamplingParams

from .tenant import DEFAULT, Tenant


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A base model that is served under ``name``; ``adapters`` are names and directories.

    With ``keep_loaded`` it is loaded at start and stays; else it is loaded when somebody asks.
    ``draft_model`` is as in ``EngineOptions``, and ``draft_name`` how requests name it.
    """

    name: str
    model: str
    dtype: str | None = None
    trust_remote_code: bool = False
    max_context: int | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    keep_loaded: bool = False
    draft_model: str | None = None
    draft_name: str | None = None
    num_draft_tokens: int = NUM_DRAFT_TOKENS

    @property
    def drafts(self) -> tuple[str, ...]:
        """The drafts that requests may name, unless the model turns out to be unfit for any."""
        return offered(self.draft_model, self.draft_name)


@dataclass(frozen=True, slots=True)
class PublicPrompt:
    """A prompt that is prefilled when ``model`` is loaded, and lent to all trust domains.

    Either a ``text``, as completions have it, or ``messages`` and ``tools`` of a chat.
    ``adapter`` is one that the model has whenever it is loaded, None: none.
    """

    model: str
    adapter: str | None = None
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What is served and within which limits.

    The main model is described by fields of its own, as in ``ModelConfig``, and is always loaded;
    ``models`` are the others. ``kv_memory`` and ``memory`` (weights and KV together) in bytes,
    None: as recommended. ``adapters`` are names and directories. ``tenants`` are all for whom
    requests may come at first; they may change while the server runs. ``public`` prompts are lent
    to all of them. ``aliases`` are other names for models, or patterns of such names; they may
    change too. With ``normalise_prompts`` what differs without meaning is taken out of prompts.
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
    memory: int | None = None
    models: tuple[ModelConfig, ...] = ()
    tenants: tuple[Tenant, ...] = (DEFAULT,)
    public: tuple[PublicPrompt, ...] = ()
    normalise_prompts: bool = True
    aliases: tuple[tuple[str, str], ...] = ()

    @property
    def all_models(self) -> tuple[ModelConfig, ...]:
        """The main model and all others."""
        main = ModelConfig(
            self.served_model_name,
            self.model,
            self.dtype,
            self.trust_remote_code,
            self.max_context,
            self.adapters,
            keep_loaded=True,
            draft_model=self.draft_model,
            draft_name=self.draft_name,
            num_draft_tokens=self.num_draft_tokens,
        )
        return (main, *self.models)


class ModelInfo(NamedTuple):
    """A loaded model as ``/v1/models`` shows it.

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


class ModelState(NamedTuple):
    """One model as an operator sees it.

    ``weights`` and ``kv`` are bytes, 0 while it is not loaded; ``requests`` have been accepted
    and have not ended; ``error`` says why the last load failed.
    """

    name: str
    path: str
    state: Literal["unloaded", "loading", "loaded", "unloading"]
    keep_loaded: bool
    weights: int
    kv: int
    requests: int
    error: str | None


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
