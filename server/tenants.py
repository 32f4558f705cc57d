"""The ``[tenants.NAME]`` tables of a settings file: who is served, how much, and what of it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from cache.loan import PUBLIC
from scheduler.tenant import Limits, Tenant

from .settings_file import ConfigError, plain_keys
from .toml_lines import Place

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ADMIN, METRICS = "admin", "metrics"
RESERVED = (ADMIN, METRICS)  # what keys may be for beside tenants
PRIORITIES = ("interactive", "batch")
LEAST = {  # of the limits that are whole numbers
    "requests_per_minute": 1,
    "tokens_per_minute": 1,
    "concurrent": 1,
    "queued": 0,
    "max_tokens": 1,
    "context": 2,
}
LIMITS = (*LEAST, "cache_share")
SETTINGS = ("weight", "priority", "trust_domain", "models", "adapters", *LIMITS)

Offer = Mapping[str, Collection[str]]
"""The configured models, and the adapters of each."""


def parse_tenants(tables: object, offer: Offer) -> tuple[Tenant, ...]:
    """The tenants of ``tables``, the value of ``tenants`` in a file. Raises ConfigError."""
    return tuple(_tenant(name, table, offer) for name, table in tenant_tables(tables).items())


def tenant_tables(tables: object) -> Mapping[str, Mapping[str, Any]]:
    """The tables by their tenants' names; what is in them is not looked at. Raises ConfigError."""
    if not isinstance(tables, Mapping):
        raise ConfigError("'tenants' is not a table: write [tenants.NAME]", ("tenants",))
    for name, table in tables.items():
        place = ("tenants", name)
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"[tenants.{name}]: no name for a tenant: up to 64 letters, digits, '.', '_' "
                "and '-'",
                place,
            )
        if name == PUBLIC:
            raise ConfigError(
                f"[tenants.{name}]: {name!r} is the lender of [[public]] prompts; give the "
                "tenant another name",
                place,
            )
        if name in RESERVED:
            raise ConfigError(
                f"[tenants.{name}]: {name!r} is what the keys to /{name} are called; give the "
                "tenant another name",
                place,
            )
        if not isinstance(table, Mapping):
            raise ConfigError(f"'tenants.{name}' is not a table: write [tenants.{name}]", place)
    return tables


def _tenant(name: str, table: Mapping[str, Any], offer: Offer) -> Tenant:
    reader = _Reader(name, table)
    weight = reader.number("weight")
    if weight is not None and weight <= 0:
        raise reader.wrong("weight", "is above 0")
    share = reader.number("cache_share")
    if share is not None and not 0 < share <= 1:
        raise reader.wrong("cache_share", "is above 0 and at most 1")
    domain = reader.text("trust_domain")
    if domain is not None and not NAME.fullmatch(domain):
        raise reader.wrong("trust_domain", "is a name: up to 64 letters, digits, '.', '_' and '-'")
    adapters = {*(a for of in offer.values() for a in of)}
    adapters |= {f"{model}:{a}" for model, of in offer.items() for a in of}
    return Tenant(
        name=name,
        weight=1.0 if weight is None else weight,
        priority="batch" if reader.one_of("priority", PRIORITIES) == "batch" else "interactive",
        trust_domain=domain,
        models=reader.names("models", "model", offer),
        adapters=reader.names("adapters", "adapter", adapters),
        limits=Limits(
            cache_share=share, **{key: reader.whole(key, least) for key, least in LEAST.items()}
        ),
    )


class _Reader:
    """Takes typed values from one tenant's table; everything raises ConfigError."""

    def __init__(self, name: str, table: Mapping[str, Any]) -> None:
        self._where = f"[tenants.{name}]"
        self._place: Place = ("tenants", name)
        self._given = plain_keys(table, self._place)
        self._written = {key.replace("-", "_"): key for key in table}
        for key in self._given:
            if key not in SETTINGS:
                raise ConfigError(
                    f"{self._where}: {key!r} is not a setting; there are {', '.join(SETTINGS)}",
                    self._at(key),
                )

    def wrong(self, key: str, is_what: str) -> ConfigError:
        """The error for a value that its setting cannot have."""
        value = self._given[key]
        return ConfigError(f"{self._where}: {key!r} {is_what}, not {value!r}", self._at(key))

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self._given.get(key)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise self.wrong(key, "is a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.wrong(key, "is finite")
        return number

    def whole(self, key: str, least: int) -> int | None:
        """A whole number of at least ``least``."""
        value: Any = self._given.get(key)
        if value is None:
            return None
        if type(value) is not int:
            raise self.wrong(key, "is a whole number")
        if value < least:
            raise self.wrong(key, f"is at least {least}")
        return int(value)

    def text(self, key: str) -> str | None:
        value = self._given.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(key, "is a text")

    def one_of(self, key: str, values: Collection[str]) -> str | None:
        text = self.text(key)
        if text is not None and text not in values:
            raise self.wrong(key, f"is one of {', '.join(values)}")
        return text

    def names(self, key: str, kind: str, known: Collection[str]) -> frozenset[str] | None:
        """A list of names, all of them ``known``."""
        value = self._given.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.wrong(key, "is a list of names")
        for index, name in enumerate(value):
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                raise ConfigError(
                    f"{self._where}: there is no {kind} {name!r}; there are: {there}",
                    (*self._at(key), index),
                )
        return frozenset(value)

    def _at(self, key: str) -> Place:
        return (*self._place, self._written[key])
