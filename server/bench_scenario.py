"""What a load is, as data: who asks, with what prompts, when, and when it ends.

A scenario is a TOML file; some come with the server, in ``server/scenarios``. Knows nothing of
HTTP or clocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .settings_file import ConfigError, SettingsFile, read_file
from .toml_lines import Place

FOLDER = Path(__file__).with_name("scenarios")
WEEK = 7 * 24 * 3600.0

Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Clients = Annotated[int, Meta(ge=1, le=10_000)]
Tokens = Annotated[int, Meta(ge=1, le=10_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=WEEK)]
Positive = Annotated[float, Meta(gt=0, le=WEEK)]
Length = Tokens | Annotated[tuple[Tokens, ...], Meta(min_length=2, max_length=2)]
"""So many tokens, roughly, or evenly distributed between two numbers, both included."""


class Closed(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="closed", tag_field="kind"
):
    """So many clients at once, each of which asks again when it has its reply."""

    clients: Clients
    stagger_s: Seconds = 0.0


class Poisson(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="poisson", tag_field="kind"
):
    """Conversations that begin independently of each other, and of how fast the replies are."""

    per_s: Annotated[float, Meta(gt=0, le=10_000)]


class Burst(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="burst", tag_field="kind"):
    """So many conversations at one moment, again and again."""

    size: Clients
    every_s: Positive


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clients of one sort.

    ``system_prompts`` is how many different system prompts are dealt out to the conversations, 0
    for one each; groups with the same ``prompt`` have them in common. ``models`` are dealt out,
    too: ``default`` is the one of the command line, ``adapters`` are all that the server lists.
    """

    name: Name
    arrivals: Closed | Poisson | Burst
    conversations: Count | None = None
    turns: Annotated[int, Meta(ge=1, le=10_000)] = 1
    pause_s: Seconds = 0.0
    system_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    system_prompts: Annotated[int, Meta(ge=0, le=10_000)] = 1
    prompt: Name | None = None
    user_tokens: Length = 150
    max_tokens: Length = 48
    models: Literal["default", "adapters"] | Annotated[tuple[str, ...], Meta(min_length=1)] = (
        "default"
    )
    tenant: Name | None = None

    def __post_init__(self) -> None:
        for name in ("user_tokens", "max_tokens"):
            length = getattr(self, name)
            if isinstance(length, tuple) and length[0] > length[1]:
                raise ValueError(f"`{name}` goes from the smaller to the larger number")


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A load. No turn begins later than ``duration_s`` after the start."""

    clients: Annotated[tuple[Group, ...], Meta(min_length=1, max_length=64)]
    name: Name = "agents"
    about: str = ""
    duration_s: Positive | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        names = [group.name for group in self.clients]
        if len(set(names)) < len(names):
            raise ValueError("two groups of `clients` have one name")
        for group in self.clients:
            if self.duration_s is None and self.conversations(group) is None:
                raise ValueError(
                    f"nothing ends the clients {group.name!r}: "
                    "give them `conversations`, or the scenario a `duration_s`"
                )

    def conversations(self, group: Group) -> int | None:
        """How many of them a group holds; None if only time ends it."""
        if group.conversations is None and isinstance(group.arrivals, Closed):
            return group.arrivals.clients if self.duration_s is None else None
        return group.conversations

    @property
    def turns(self) -> int:
        """The most that a conversation has."""
        return max(group.turns for group in self.clients)

    def requests(self) -> int | None:
        """How many there will be if none fails; None if that depends on time."""
        if self.duration_s is not None:
            return None
        return sum((self.conversations(group) or 0) * group.turns for group in self.clients)

    def smaller(self, factor: int) -> Scenario:
        """The same load on a smaller scale: fewer clients, shorter system prompts, less time."""

        def part(count: int) -> int:
            return max(1, count // factor)

        def shrunk(group: Group) -> Group:
            arrivals = group.arrivals
            match arrivals:
                case Closed():
                    arrivals = Closed(part(arrivals.clients), arrivals.stagger_s)
                case Poisson():
                    arrivals = Poisson(arrivals.per_s / factor)
                case Burst():
                    arrivals = Burst(part(arrivals.size), arrivals.every_s)
            return msgspec.structs.replace(
                group,
                arrivals=arrivals,
                conversations=group.conversations and part(group.conversations),
                system_tokens=group.system_tokens // factor,
            )

        return msgspec.structs.replace(
            self,
            clients=tuple(map(shrunk, self.clients)),
            duration_s=self.duration_s and self.duration_s / factor,
        )


def scenario_names() -> list[str]:
    """The scenarios that come with the server."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_scenario(name_or_file: str) -> Scenario:
    """The scenario of this name, or in this file. Raises ConfigError, with the line at fault."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        if name_or_file not in scenario_names():
            there = ", ".join(scenario_names())
            raise ConfigError(
                f"there is no scenario {name_or_file!r}; there are {there}, and files"
            )
        path = FOLDER / f"{name_or_file}.toml"
    file = read_file(path)
    try:
        return msgspec.convert({"name": path.stem, **file.values}, Scenario)
    except msgspec.ValidationError as error:
        raise ConfigError(_explained(file, str(error))) from error


def changed(scenario: Scenario, **settings: object) -> Scenario:
    """``scenario`` with other settings, but for those that are None. Raises ConfigError."""
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        return msgspec.convert(msgspec.to_builtins(scenario) | given, Scenario)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def _explained(file: SettingsFile, message: str) -> str:
    """msgspec's message with the line that it is about, and TOML's words for its place."""
    what, _, path = message.partition(" - at `$")
    found = re.search(r"unknown field `([^`]*)`", what)
    place: Place = (*_place(path.rstrip("`")), *([found[1]] if found else []))
    where = path.rstrip("`").lstrip(".")
    what = what[0].lower() + what[1:].replace("`null`", "nothing").replace("`array`", "`list`")
    return f"{file.where(place)}: {where + ': ' if where else ''}{what}"


def _place(path: str) -> Iterator[str | int]:
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
        yield key or int(index)
