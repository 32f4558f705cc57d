"""How ``commons serve`` gets its options from a settings file, and gets them anew later on.

Knows the options' types, not their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from .settings_file import ConfigError, SettingsFile, read_file

if TYPE_CHECKING:
    from .config import ServerConfig

FILE, ARGUMENTS = "commons.file", "commons.arguments"  # in a context's meta
TABLES = ("models", "tenants", "public", "aliases")  # settings that are no options

Consumer = Callable[["ServerConfig"], Any]


class ServeCommand(TyperCommand):
    """Says what is wrong with the settings in one plain line, however wide the terminal.

    Where the command is run for its configuration alone, ConfigError is raised instead.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        arguments = tuple(args)
        with _told(parent is not None):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = arguments
        return context

    def invoke(self, ctx: Any) -> Any:
        with _told(ctx.parent is not None):
            return super().invoke(ctx)


@contextmanager
def _told(wanted: bool) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        if not wanted:
            raise
        typer.echo(f"commons serve: {error}", err=True)
        raise typer.Exit(2) from error


def rereading(context: typer.Context) -> Callable[[], ServerConfig]:
    """What the same command line makes of environment and file whenever it is called.

    It raises ConfigError, and may be called on any thread.
    """
    return partial(configured, context.command, context.meta[ARGUMENTS])


def configured(command: Any, arguments: Sequence[str]) -> ServerConfig:
    """What ``commons serve`` would be started with. Raises ConfigError."""
    kept: list[ServerConfig] = []
    consumer: Consumer = kept.append
    try:
        with command.make_context("serve", list(arguments), obj=consumer) as context:
            command.invoke(context)
    except typer.BadParameter as error:
        raise ConfigError(error.format_message()) from error
    return kept[0]


def settings_of(context: typer.Context) -> SettingsFile | None:
    """The settings file, if there is one."""
    file: SettingsFile | None = context.meta.get(FILE)
    return file


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's settings the defaults of what neither line nor environment gives.

    Raises ConfigError.
    """
    if path is None:
        return None
    options = [p for p in context.command.params if p.name and p.name != "config"]
    file = read_file(path, [*(str(p.name) for p in options), *TABLES])
    for option in options:
        if option.name in file.values:
            _check(context, file, option)
    context.meta[FILE] = file
    context.default_map = {k: v for k, v in file.values.items() if k not in TABLES}
    return path


def _check(context: typer.Context, file: SettingsFile, option: Any) -> None:
    """Whether an option can have the file's value, also where another one goes before it."""
    value = file.values[option.name]
    where = f"{file.where_is(option.name)}: {option.opts[0]}"
    if isinstance(value, dict):
        raise ConfigError(f"{where}: this is no table")
    if option.multiple != isinstance(value, list):
        raise ConfigError(f"{where}: this is {'a' if option.multiple else 'no'} list")
    try:
        option.process_value(context, value)
    except typer.BadParameter as error:
        raise ConfigError(f"{where}: {error.message}") from error


@contextmanager
def blaming(context: typer.Context, option: str) -> Iterator[None]:
    """Says which option is at fault, or which line of the file that gave it."""
    try:
        yield
    except ConfigError as error:
        file = settings_of(context)
        if file is not None and _from_file(context, option):
            raise ConfigError(f"{file.where_is(option)}: {error}") from error
        hint = f"--{option.replace('_', '-')}"
        raise typer.BadParameter(str(error), param_hint=hint) from error


def _from_file(context: Any, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "DEFAULT_MAP"


def consume(context: typer.Context, start: Consumer) -> Consumer:
    """What is done with the configuration: ``start``, unless it is read anew."""
    consumer: Consumer = start if context.obj is None else context.obj
    return consumer
