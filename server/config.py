"""What a server is started with: command line over ``COMMONS_*`` environment over TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import embedded
from scheduler.info import ServiceConfig

from .admin import check_name

NO_DRAFT = "none"
NO_FILE = "none"
MOST_DRAFT_TOKENS = 16
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class ConfigError(ValueError):
    """A configuration that cannot be used; one line that says where and why."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything ``commons serve`` was told; ``drain_timeout`` in seconds.

    ``usage_db`` is the file in which tenants' usage is kept, None: it is not.
    """

    service: ServiceConfig
    host: str = "127.0.0.1"
    port: int = 8000
    default_max_tokens: int = 4096
    drain_timeout: float = 30.0
    adapter_dir: Path | None = None
    usage_db: Path | None = None


def usage_file(option: str | None, config: Path | None) -> Path | None:
    """Where usage is kept: by default beside the settings file, and nowhere without one."""
    if option is not None:
        return None if option == NO_FILE else Path(option).expanduser()
    return None if config is None else config.with_name(f"{config.stem}.usage.db")


def served_name(model: str) -> str:
    """The id of ``model`` where none is given: the last part of its path."""
    if Path(model) == embedded.path():
        return embedded.NAME
    return Path(model).expanduser().resolve().name if Path(model).exists() else Path(model).name


def parse_size(text: str) -> int:
    """Bytes of a size like ``12GB``, ``512MiB`` or ``1000000``. Raises ConfigError."""
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise ConfigError(f"{text!r} is not a size: write it like 12GB or 512MiB")
    number, unit, binary = found.groups()
    factor = UNITS[unit.upper()]
    if binary:
        factor = 1024 ** "_KMGT".index(unit.upper()) if unit else 1
    size = int(float(number) * factor)
    if not size:
        raise ConfigError(f"{text!r} is no memory at all")
    return size


def draft_of(option: str | None, model: str) -> tuple[str | None, str | None]:
    """Where the draft model is and what it is called; the embedded model has one of its own."""
    if option is None and Path(model) == embedded.path():
        option = str(embedded.draft_path())
    if option is None or option == NO_DRAFT:
        return None, None
    if Path(option) == embedded.draft_path():
        return option, embedded.DRAFT_NAME
    return option, served_name(option)


def own_adapters(model: str) -> list[str]:
    """The adapters that come with the embedded model, as ``NAME=PATH``."""
    if Path(model) != embedded.path():
        return []
    return [f"{name}={path}" for name, path in embedded.adapter_paths().items()]


def parse_adapters(options: Iterable[str], base: str) -> tuple[tuple[str, str], ...]:
    """Names and directories of ``NAME=PATH`` options. Raises ConfigError."""
    found: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not (equals and path):
            raise ConfigError(f"{option!r} is not NAME=PATH")
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if name in found or name == base:
            raise ConfigError(f"there are two models with the name {name!r}")
        found[name] = str(Path(path).expanduser())
    return tuple(found.items())


def read_file(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The settings of a TOML file, by option name. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    settings = {name.replace("-", "_"): value for name, value in values.items()}
    for name in settings:
        if name not in known:
            raise ConfigError(f"{path}: {name!r} is not a setting; there are {', '.join(known)}")
    return settings
