"""What a server is started with: command line over ``COMMONS_*`` environment over TOML file."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from engine import embedded
from scheduler.info import ServiceConfig

from .access import Grants
from .adapter_name import check_name
from .auth import is_loopback
from .keys import digest_of
from .settings_file import ConfigError

NO_DRAFT = "none"
NO_FILE = "none"
MOST_DRAFT_TOKENS = 16
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything ``commons serve`` was told; ``drain_timeout`` in seconds.

    ``config`` is the settings file. With ``allow_unauthenticated`` others than this machine may
    reach a server without keys. ``reread`` makes of the command line, the environment and the
    file what a start would make of them now; on any thread; it raises ConfigError. ``usage_db``
    is the file in which tenants' usage is kept, None: it is not. ``metrics_compat`` is the server
    under whose names the metrics are there, too. ``log_file`` is where the log goes, None: standard
    error; ``otel_endpoint`` where traces go, None: nowhere.
    """

    service: ServiceConfig
    host: str = "127.0.0.1"
    port: int = 8000
    default_max_tokens: int = 4096
    drain_timeout: float = 30.0
    adapter_dir: Path | None = None
    grants: Grants = field(default_factory=Grants)
    allow_unauthenticated: bool = False
    config: Path | None = None
    log_level: str = "info"
    reread: Callable[[], ServerConfig] | None = field(default=None, compare=False)
    usage_db: Path | None = None
    metrics_compat: str | None = None
    log_json: bool = False
    log_prompts: bool = False
    log_file: Path | None = None
    otel_endpoint: str | None = None


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


def parse_api_key(api_key: str) -> bytes:
    """The hash of the one key that the options give. Raises ConfigError."""
    if not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ConfigError("--api-key is a text of printable ASCII characters without spaces")
    return digest_of(api_key.encode("ascii"))


def check_grants(config: ServerConfig) -> None:
    """Refuses a start that would leave out everybody, or let in anybody. Raises ConfigError."""
    grants, file = config.grants, config.config
    if grants.keyless:
        name = grants.tenants[0].name
        raise ConfigError(
            f"{file} has tenants, but none has a key, so nobody could be served; make one with "
            f"`commons keys new {name} --config {file}`"
        )
    if grants.closed or config.allow_unauthenticated or _is_local(config.host, config.port):
        return
    raise ConfigError(
        f"--host {config.host} lets other machines in, and there are no keys: give --api-key KEY "
        "or tenants with keys (--config FILE, `commons keys new`), or allow everybody with "
        "--allow-unauthenticated"
    )


def _is_local(host: str, port: int) -> bool:
    """Whether only this machine can reach ``host``; binding tells what is wrong with a bad one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True
    return all(is_loopback(str(address[0])) for *_, address in found)
