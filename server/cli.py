"""The command line: ``commons serve``, ``bench``, ``doctor`` and ``keys``."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from server.bench import bench
from server.doctor import doctor
from server.exit import leave
from server.keys_command import keys
from server.options import with_options
from server.serve_command import ServeCommand, consume
from server.serve_options import EndpointOptions, LimitOptions, LogOptions, ModelOptions

if TYPE_CHECKING:
    from server.config import ServerConfig

app = typer.Typer(
    help="One model endpoint that a team and all its agents share.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(bench)
app.command()(doctor)
app.add_typer(keys, name="keys")


@app.command(cls=ServeCommand)
@with_options(variables="COMMONS_")
def serve(
    context: typer.Context,
    models: ModelOptions,
    endpoint: EndpointOptions,
    limits: LimitOptions,
    logs: LogOptions,
) -> None:
    """Serve a model on an OpenAI-compatible endpoint."""
    # Imported here: `commons bench` and `--help` need neither MLX nor a server.
    from server.serve_config import server_config

    consume(context, _run)(server_config(context, models, endpoint, limits, logs))


def _run(config: ServerConfig) -> NoReturn:
    """Serves to the end of the process."""
    from server.launch import run
    from server.logs import configure

    try:
        configure(config.log_level, config.log_file, as_json=config.log_json)
    except OSError as error:
        typer.echo(f"commons serve: cannot write {config.log_file}: {error.strerror}", err=True)
        leave(1)
    leave(run(config))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlx-commons {importlib.metadata.version('mlx-commons')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """One model endpoint that a team and all its agents share."""


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
