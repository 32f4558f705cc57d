"""A server with tenants that have limits, and a key for each."""

from __future__ import annotations

from pathlib import Path

from server.tenants import ADMIN

from .access import bearer, write_keys
from .process import Server

TENANTS: dict[str, dict[str, int]] = {
    "free": {},
    "requests": {"requests_per_minute": 3},
    "tokens": {"tokens_per_minute": 600},
    "exact": {"tokens_per_minute": 600},
    "refused": {"requests_per_minute": 3},
    "both": {"requests_per_minute": 1000, "tokens_per_minute": 100_000},
    "concurrent": {"concurrent": 2},
    "queued": {"queued": 1},
}
OPERATOR = bearer(f"key-of-{ADMIN}")  # headers of who may scrape and administer


def as_tenant(name: str) -> dict[str, str]:
    """Headers of a tenant's request."""
    return bearer(f"key-of-{name}")


def serve(folder: Path, model: str, *arguments: str) -> Server:
    """A server for these tenants, with a settings file and keys in ``folder``."""
    config = folder / "commons.toml"
    lines = [f'model = "{model}"']
    for name, limits in TENANTS.items():
        lines.append(f"[tenants.{name}]")
        lines += [f"{limit} = {value}" for limit, value in limits.items()]
    config.write_text("\n".join(lines) + "\n")
    write_keys(config, *TENANTS, ADMIN)
    return Server("--config", str(config), *arguments)
