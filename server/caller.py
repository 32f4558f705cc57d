"""On whose behalf a request runs: tenant, the tenant's agent, trust domain, priority."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from starlette.types import Scope

from cache.loan import NOBODY
from scheduler.served import Served
from scheduler.tenant import DEFAULT, Priority, Tenant

from .auth import tenant_of
from .errors import bad_request
from .fields import GenerationFields

MOST_SALT = 256  # characters
TIERS: dict[str, Priority | None] = {"auto": None, "default": None, "flex": "batch"}
AGENT_BYTES, DOMAIN_BYTES = 8, 16


class Caller(NamedTuple):
    """Who asks. ``agent`` is "" where the request does not say; ``domain`` is a trust domain."""

    tenant: Tenant = DEFAULT
    agent: str = ""
    domain: str = NOBODY
    priority: Priority = "interactive"

    @property
    def tier(self) -> str:
        """The priority as OpenAI's clients call it."""
        return "flex" if self.priority == "batch" else "default"


def caller_of(scope: Scope, body: GenerationFields) -> Caller:
    """Who sent a request with this body. Raises ApiError 400."""
    agent = body.prompt_cache_key or body.safety_identifier or body.user or ""
    return caller_as(scope, agent, body.cache_salt, body.service_tier)


def caller_as(scope: Scope, agent: str, salt: str | None, tier: str | None) -> Caller:
    """Who sent a request that says this of itself. Raises ApiError 400."""
    tenant = tenant_of(scope)
    return Caller(
        tenant=tenant,
        agent=_digest(AGENT_BYTES, agent) if agent else "",
        domain=_domain(tenant.trust_domain or NOBODY, salt),
        priority=_priority(tenant, tier),
    )


def may_use(tenant: Tenant, served: Served, adapter: str | None) -> bool:
    """Whether a model, or one of its adapters, is there for a tenant.

    An adapter is there where its base is, too.
    """
    if tenant.models is not None and served.name not in tenant.models:
        return False
    if adapter is None or tenant.adapters is None:
        return True
    return not tenant.adapters.isdisjoint((adapter, f"{served.name}:{adapter}"))


def _domain(trusted: str, salt: str | None) -> str:
    """The part of a trust domain in which those with the same salt are among themselves."""
    if salt is None:
        return trusted
    if not (0 < len(salt) <= MOST_SALT and salt.isprintable()):
        raise bad_request(f"cache_salt has 1 to {MOST_SALT} printable characters.", "cache_salt")
    # No trust domain of the settings has a colon in its name.
    return f"salt:{_digest(DOMAIN_BYTES, trusted, salt)}"


def _priority(tenant: Tenant, tier: str | None) -> Priority:
    if tier is None:
        return tenant.priority
    if tier not in TIERS:
        there = ", ".join(repr(known) for known in TIERS)
        raise bad_request(
            f"service_tier {tier[:40]!r} is not offered; there are {there}.", "service_tier"
        )
    return TIERS[tier] or tenant.priority


def _digest(size: int, *texts: str) -> str:
    digest = blake2b(digest_size=size)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))  # so that no two lists run together alike
        digest.update(data)
    return digest.hexdigest()
