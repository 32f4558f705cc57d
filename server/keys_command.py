"""``commons keys``: makes, lists and revokes API keys. Needs neither MLX nor a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from scheduler.tenant import DEFAULT

from .keys import keys_path, new_key, read_keys, revoke_key
from .settings_file import ConfigError, read_file
from .tenants import RESERVED, tenant_tables

keys = typer.Typer(
    help="Make, list and revoke the API keys of tenants.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        envvar="COMMONS_CONFIG",
        help="The server's settings file; the hashes of its keys are kept beside it.",
    ),
]


@keys.command()
def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A tenant of the settings file, or admin, or metrics."),
    ],
    config: Config,
) -> None:
    """Make a key and print it; it is kept nowhere and cannot be shown again."""
    with _told():
        known = _names(config)
        if name not in known:
            raise ConfigError(
                f"{name!r} is no tenant of {config}; there are {', '.join(known)}: add "
                f"[tenants.{name}] first"
            )
        key = new_key(keys_path(config), name)
    typer.echo(
        f"A key for {name}. Only its hash is kept, in {keys_path(config)}; a running server takes "
        "it at SIGHUP or POST /admin/reload.",
        err=True,
    )
    typer.echo(key)


@keys.command("list")
def list_keys(config: Config) -> None:
    """List the keys: id, name, and when each was made."""
    with _told():
        found = read_keys(keys_path(config))
    width = max((len(key.name) for key in found), default=0)
    for key in found:
        typer.echo(f"{key.id}  {key.name:{width}}  {key.created}")
    if not found:
        typer.echo(f"There are no keys in {keys_path(config)}.", err=True)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As in the list, or how it begins.")],
    config: Config,
) -> None:
    """Revoke a key; requests that are running with it finish."""
    with _told():
        key = revoke_key(keys_path(config), key_id)
    typer.echo(
        f"Revoked {key.id} of {key.name}; a running server forgets it at SIGHUP or "
        "POST /admin/reload."
    )


def _names(config: Path) -> list[str]:
    """Whom a key may be for."""
    file = read_file(config)
    with file.blamed():
        tenants = list(tenant_tables(file.values.get("tenants", {})))
    return [*(tenants or [DEFAULT.name]), *RESERVED]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        typer.echo(f"commons keys: {error}", err=True)
        raise typer.Exit(2) from error
