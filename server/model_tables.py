"""The ``[models.NAME]`` tables of a settings file: base models beside the main one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from engine.weights import DTYPES
from scheduler.info import ModelConfig

from .config import MOST_DRAFT_TOKENS, draft_of, parse_adapters
from .settings_file import ConfigError, at, plain_keys

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
KINDS: dict[str, tuple[type, str]] = {
    "model": (str, "a text"),
    "dtype": (str, "a text"),
    "max_context": (int, "a whole number"),
    "trust_remote_code": (bool, "true or false"),
    "keep_loaded": (bool, "true or false"),
    "adapters": (dict, "a table of NAME = PATH"),
    "draft_model": (str, "a text"),
    "num_draft_tokens": (int, "a whole number"),
}
BOUNDS: dict[str, tuple[int, int | None]] = {  # tokens
    "max_context": (2, None),
    "num_draft_tokens": (1, MOST_DRAFT_TOKENS),
}


def parse_models(
    tables: object, main: str, adapters: Collection[str] = ()
) -> tuple[ModelConfig, ...]:
    """The models of ``tables``, the value of ``models`` in a file. Raises ConfigError.

    ``main`` is the name of the main model, ``adapters`` are those of its adapters.
    """
    if not isinstance(tables, Mapping):
        raise ConfigError("'models' is not a table: write [models.NAME]", ("models",))
    models = tuple(_model(name, table) for name, table in tables.items())
    names = [main, *tables]
    bare = {*adapters, *(name for m in models for name, _ in m.adapters)}
    for name in names:
        if names.count(name) > 1 or name in bare:
            raise ConfigError(
                f"[models.{name}]: there are two models with the name {name!r}", ("models", name)
            )
    return models


def _model(name: str, table: object) -> ModelConfig:
    where = f"[models.{name}]"
    with at("models", name):
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: no name for a model: up to 128 letters, digits, '.', '_', '/' and '-'"
            )
        if not isinstance(table, Mapping):
            raise ConfigError(f"'models.{name}' is not a table: write {where}")
        given = _checked(where, name, table)
        if not given.get("model"):
            raise ConfigError(f"{where}: 'model' is missing: give a path or a repository id")
        adapters = _adapters(where, name, given.pop("adapters", {}))
        draft, draft_name = draft_of(given.pop("draft_model", None), given["model"])
        return ModelConfig(
            name=name, adapters=adapters, draft_model=draft, draft_name=draft_name, **given
        )


def _checked(where: str, name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model by their plain names, each of which it can have."""
    given = plain_keys(table, ("models", name))
    for written, (key, value) in zip(table, given.items(), strict=True):
        with at("models", name, written):
            _check(where, key, value)
            if key in BOUNDS:
                _check_bounds(where, key, value)
    return given


def _check(where: str, key: str, value: Any) -> None:
    if key not in KINDS:
        raise ConfigError(f"{where}: {key!r} is not a setting; there are {', '.join(KINDS)}")
    kind, text = KINDS[key]
    if type(value) is not kind:
        raise ConfigError(f"{where}: {key!r} is {text}, not {value!r}")
    if key == "dtype" and value not in DTYPES:
        raise ConfigError(f"{where}: 'dtype' is one of {', '.join(DTYPES)}, not {value!r}")


def _check_bounds(where: str, key: str, value: int) -> None:
    least, most = BOUNDS[key]
    if value < least:
        raise ConfigError(f"{where}: {key!r} is at least {least}, not {value}")
    if most is not None and value > most:
        raise ConfigError(f"{where}: {key!r} is at most {most}, not {value}")


def _adapters(where: str, base: str, table: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    for name, path in table.items():
        if not isinstance(path, str):
            message = f"{where}: the adapter {name!r} is a path, not {path!r}"
            raise ConfigError(message, ("models", base, "adapters", name))
    try:
        return parse_adapters((f"{name}={path}" for name, path in table.items()), base)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", ("models", base, "adapters")) from error
