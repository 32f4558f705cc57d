"""What ``commons doctor`` checks of the settings: the file, keys, models and the port."""

from __future__ import annotations

import errno
import http.client
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .config import ServerConfig, check_grants
from .finding import Finding, Named, ok, problem, warning
from .keys import keys_path
from .launch import bind
from .serve_command import configured
from .settings_file import ConfigError, read_file

ASK = 2.0  # seconds that whoever has the port may take to answer
MOST_ANSWER = 1 << 16  # bytes
HERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def config_checks(serve: Any, path: Path | None) -> tuple[ServerConfig | None, list[Named]]:
    """The configuration that ``commons serve`` would start with, if any would, and the checks."""
    try:
        config = configured(serve, [] if path is None else ["--config", str(path)])
    except ConfigError as error:
        broken = problem(f"{error}", _editing(path))
        checks = [Named("config", lambda: broken)]
        if path is not None:
            checks.append(Named("keys", lambda: keys(path)))
        return None, checks
    return config, list(_sound_checks(config))


def _sound_checks(config: ServerConfig) -> Iterator[Named]:
    yield Named("config", lambda: settings(config))
    if config.config is not None:
        path = config.config
        yield Named("keys", lambda: keys(path))
    yield Named("models", lambda: models(config))
    yield Named("port", lambda: port(config.host, config.port))


def _editing(path: Path | None) -> str | None:
    return None if path is None else f"${{EDITOR:-vi}} {path}"


def settings(config: ServerConfig) -> Finding:
    """Whether a server would start with them, and for whom."""
    try:
        check_grants(config)
    except ConfigError as error:
        return problem(str(error))
    where = "no settings file" if config.config is None else str(config.config)
    grants = config.grants
    if grants.orphans:
        names = ", ".join(grants.orphans)
        return warning(f"{where}: keys for {names}, which are no tenants", "commons keys list")
    if not grants.closed:
        who = f"anybody who reaches {config.host}"
        said = f"{where}; without keys {who} is served"
        return warning(said, "--api-key KEY") if config.allow_unauthenticated else ok(said)
    return ok(f"{where}: {len(grants.everybody)} tenants, {len(grants.keys)} keys")


def keys(config: Path) -> Finding:
    """Whether secrets are for their owner alone."""
    path = keys_path(config)
    for file, secret in ((path, True), (config, _has_key(config))):
        try:
            found = file.stat()
        except FileNotFoundError:
            continue
        mode = stat.S_IMODE(found.st_mode)
        if secret and mode & 0o077:
            return problem(f"{file} is open to others (mode {mode:04o})", f"chmod 600 {file}")
        if mode & 0o022:
            return warning(f"others can change {file} (mode {mode:04o})", f"chmod go-w {file}")
        if not os.access(file, os.R_OK):
            return problem(f"{file} cannot be read by this user", f"ls -l {file}")
    return ok(f"{path} is for its owner alone" if path.exists() else "there is no keys file")


def _has_key(config: Path) -> bool:
    try:
        return "api_key" in read_file(config).values
    except ConfigError:
        return False


def models(config: ServerConfig) -> Finding:
    """Whether everything that is to be loaded is there."""
    remote: list[str] = []
    service = config.service
    for model in service.all_models:
        parts = [(f"model {model.name!r}", model.model, "config.json")]
        parts += [(f"adapter {n!r}", p, "adapter_config.json") for n, p in model.adapters]
        if model.draft_model not in (None, "ngram"):
            parts.append((f"the draft of {model.name!r}", str(model.draft_model), "config.json"))
        for what, where, file in parts:
            path = Path(where).expanduser()
            if (path / file).is_file():
                continue
            if path.exists():
                return problem(f"{what}: {path} has no {file}", f"ls {path}")
            if _is_path(where):
                return problem(f"{what}: there is no {path}", f"ls {path.parent}")
            remote.append(where)
    if remote:
        return ok(f"{', '.join(remote)}: fetched from the model hub unless it was before")
    return ok(", ".join(model.name for model in service.all_models))


def _is_path(text: str) -> bool:
    """Whether no repository can be called so."""
    return text.startswith(("/", "~", ".")) or text.count("/") != 1


def port(host: str, number: int) -> Finding:
    """Whether a server could listen there, or one does."""
    where = f"{host}:{number}"
    try:
        bind(host, number).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _occupied(host, number)
        reason = (error.strerror or str(error)).lower()
        return problem(f"{where}: {reason}", "choose another --host or --port")
    return ok(f"{where} is free" if number else f"a free one of {host} is taken at start")


def _occupied(host: str, number: int) -> Finding:
    """Who has the port: a server of ours, which is well or not, or another program."""
    where = f"{host}:{number}"
    look = f"lsof -nP -iTCP:{number} -sTCP:LISTEN"
    try:
        health = _health(HERE.get(host, host), number)
    except (OSError, ValueError, http.client.HTTPException):
        return problem(f"{where} is taken by another program", f"{look}; or choose another --port")
    if health != "ok":
        return problem(f"the server at {where} is not well: {health}", f"{look}; restart it")
    return ok(f"a server runs at {where}, and is well")


def _health(host: str, number: int) -> str:
    """What a server says of itself. Raises OSError, HTTPException, ValueError for others."""
    connection = http.client.HTTPConnection(host, number, timeout=ASK)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        told = json.loads(answer.read(MOST_ANSWER))
    finally:
        connection.close()
    if not isinstance(told, dict) or "heartbeat_age_seconds" not in told:
        raise ValueError("no server of ours")
    return str(told["status"])
