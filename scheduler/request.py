"""One request as the scheduler sees it: tokens in, limits, sampling; no text, no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache.loan import NOBODY, Borrower
from engine.params import SamplingParams
from engine.steering import Constraint
from engine.variant import BASE, Variant

from .tenant import DEFAULT, Priority, Tenant


@dataclass(frozen=True, slots=True)
class Request:
    """An accepted request.

    ``prompt`` holds at least one token id, all inside the vocabulary. ``max_tokens`` is at
    least 1 and fits the context. ``stop_token_ids`` end the reply (normally the model's
    end-of-sequence ids). ``boundaries`` are prompt lengths at which layers that cannot be
    trimmed keep a snapshot (for instance the end of the system prompt), ascending. ``variant``
    names an adapter and a draft that the engine knows. ``model`` is the base model's name, which
    tells the models of one engine thread apart.

    ``tenant`` pays for the request; ``agent`` tells the tenant's agents apart, as far as it is
    known. ``domain`` names the trust domain inside which prefixes are lent. ``constraint`` is what
    the reply has to keep to. ``origin`` is what the log calls the client's request.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_token_ids: frozenset[int] = frozenset()
    boundaries: tuple[int, ...] = ()
    variant: Variant = BASE
    model: str = ""
    tenant: Tenant = DEFAULT
    agent: str = ""
    domain: str = NOBODY
    priority: Priority = "interactive"
    constraint: Constraint | None = None
    origin: str = ""

    @property
    def log_context(self) -> dict[str, str]:
        """What log lines about it carry, so that they are found by its name."""
        return {"request_id": self.origin}

    @property
    def namespace(self) -> tuple[Variant, str]:
        """What must be equal, within one model, for two requests to share KV."""
        return self.variant, self.domain

    @property
    def borrower(self) -> Borrower:
        """For whom the engine runs it."""
        return Borrower(self.tenant.name, self.domain)
