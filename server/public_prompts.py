"""The ``[[public]]`` list of a settings file: prompts whose prefixes are lent to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from scheduler.info import PublicPrompt, ServiceConfig

from .errors import ApiError
from .settings_file import ConfigError, plain_keys
from .tenants import Offer
from .toml_lines import Place

SETTINGS = ("model", "adapter", "text", "messages", "tools")


def parse_public(entries: object, main: ServiceConfig, offer: Offer) -> tuple[PublicPrompt, ...]:
    """The prompts of ``entries``, the value of ``public`` in a file. Raises ConfigError.

    The ``main`` model is the one of those that name none.
    """
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise ConfigError("'public' is not a list of tables: write [[public]]", ("public",))
    return tuple(_prompt(i, entry, main, offer) for i, entry in enumerate(entries))


def _prompt(
    index: int, entry: Mapping[str, Any], main: ServiceConfig, offer: Offer
) -> PublicPrompt:
    place: Place = ("public", index)
    given = plain_keys(entry, place)
    for key, value in given.items():
        if key not in SETTINGS:
            there = ", ".join(SETTINGS)
            raise _wrong(f"{key!r} is not a setting; there are {there}", place, key)
        if key in ("model", "adapter", "text") and not (isinstance(value, str) and value):
            raise _wrong(f"{key!r} is a text, not {value!r}", place, key)
    model, adapter = given.get("model", main.served_model_name), given.get("adapter")
    if model not in offer:
        there = ", ".join(offer)
        raise _wrong(f"there is no model {model!r}; there are: {there}", place, "model")
    if adapter is not None and adapter not in offer[model]:
        there = ", ".join(offer[model]) or "none"
        raise _wrong(
            f"the model {model!r} has no adapter {adapter!r}; there are: {there}", place, "adapter"
        )
    if ("text" in given) == ("messages" in given):
        raise ConfigError("[[public]]: give either 'text' or 'messages'", place)
    if "tools" in given and "text" in given:
        raise _wrong("'tools' go with 'messages'", place, "tools")
    return PublicPrompt(
        model=model,
        adapter=adapter,
        text=given.get("text"),
        messages=_messages(given["messages"], place) if "messages" in given else None,
        tools=_tools(given["tools"], place, main) if "tools" in given else None,
    )


def _messages(value: object, place: Place) -> tuple[dict[str, Any], ...]:
    """The messages as templates get them from a chat with the same ones."""
    # Imported here, as below: files without public prompts are read without what chats need.
    from .chat import ChatMessage, message_dicts

    try:
        return tuple(message_dicts(msgspec.convert(value, list[ChatMessage])))
    except (msgspec.ValidationError, ApiError) as error:
        raise _wrong(f"'messages' cannot be served: {error}", place, "messages") from error


def _tools(value: object, place: Place, main: ServiceConfig) -> tuple[dict[str, Any], ...]:
    """The tools, normalised as those of requests are: else no request would begin with them."""
    from .chat import Tool, tool_dicts
    from .stable import canonical_tool

    try:
        tools = tool_dicts(msgspec.convert(value, list[Tool]))
    except (msgspec.ValidationError, ApiError) as error:
        raise _wrong(f"'tools' cannot be served: {error}", place, "tools") from error
    return tuple(map(canonical_tool, tools) if main.normalise_prompts else tools)


def _wrong(message: str, place: Place, key: str) -> ConfigError:
    return ConfigError(f"[[public]]: {message}", (*place, key))
