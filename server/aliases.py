"""The ``[aliases]`` table of a settings file: ids that clients hard-code, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping

from .settings_file import ConfigError
from .tenants import Offer

MOST_NAME = 200  # characters
MOST_ALIASES = 1000


def parse_aliases(table: object, offer: Offer) -> tuple[tuple[str, str], ...]:
    """Names, or patterns, and models of ``table``, the value of ``aliases`` in a file.

    Raises ConfigError.
    """
    if not isinstance(table, Mapping):
        example = '[aliases] "NAME" = "MODEL"'
        raise ConfigError(f"'aliases' is not a table: write {example}", ("aliases",))
    if len(table) > MOST_ALIASES:
        raise ConfigError(f"[aliases]: at most {MOST_ALIASES} are possible", ("aliases",))
    known = _known(offer)
    return tuple((name, _target(name, value, known)) for name, value in table.items())


def _known(offer: Offer) -> list[str]:
    """Every name under which something is served."""
    names = list(offer)
    for model, adapters in offer.items():
        names += [f"{model}:{adapter}" for adapter in adapters]
    return names + [adapter for adapters in offer.values() for adapter in adapters]


def _target(name: str, value: object, known: list[str]) -> str:
    place = ("aliases", name)
    if not (0 < len(name) <= MOST_NAME and name.isprintable()):
        raise ConfigError(f"[aliases]: a name has 1 to {MOST_NAME} printable characters", place)
    if name in known:
        raise ConfigError(f"[aliases]: {name!r} is itself a model that is served", place)
    if not isinstance(value, str):
        raise ConfigError(f"[aliases]: {name!r} is the name of a model, not {value!r}", place)
    if value not in known:
        there = ", ".join(dict.fromkeys(known))
        raise ConfigError(f"[aliases]: there is no model {value!r}; there are: {there}", place)
    return value
