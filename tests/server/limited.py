"""``commons`` with tenants of the test's own, who say their names in a header."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from scheduler import info
from scheduler.tenant import DEFAULT, Limits, Tenant
from server import cli, rate_limits

from .process import Server

HEADER = "x-test-tenant"
TENANTS = (
    DEFAULT,
    Tenant("free"),
    Tenant("requests", limits=Limits(requests_per_minute=3)),
    Tenant("tokens", limits=Limits(tokens_per_minute=600)),
    Tenant("exact", limits=Limits(tokens_per_minute=600)),
    Tenant("refused", limits=Limits(requests_per_minute=3)),
    Tenant("both", limits=Limits(requests_per_minute=1000, tokens_per_minute=100_000)),
    Tenant("concurrent", limits=Limits(concurrent=2)),
    Tenant("queued", limits=Limits(queued=1)),
)
OPERATOR: dict[str, str] = {}  # headers of who may scrape and administer


def as_tenant(name: str) -> dict[str, str]:
    """Headers of a tenant's request."""
    return {HEADER: name}


def serve(folder: Path, model: str, *arguments: str) -> Server:
    """A server for these tenants, with a settings file in ``folder``."""
    config = folder / "commons.toml"
    config.write_text(f'model = "{model}"\n')
    command = (sys.executable, "-m", "tests.server.limited")
    return Server("--config", str(config), *arguments, command=command)


def tenant_of(scope: Scope) -> Tenant:
    name = Headers(scope=scope).get(HEADER, DEFAULT.name)
    return next(tenant for tenant in TENANTS if tenant.name == name)


if __name__ == "__main__":
    rate_limits.tenant_of = tenant_of
    info.ServiceConfig = functools.partial(info.ServiceConfig, tenants=TENANTS)  # type: ignore
    cli.main()
