"""How many tokens a reply's thoughts may have, by the names that other servers gave the field."""

from __future__ import annotations

from typing import Any, Protocol

from engine.tokenizer import Tokenizer

from .errors import bad_request

ARGUMENT = "thinking_budget"  # also among the arguments of a template
FIELDS = ("thinking_token_budget", "thinking_budget")
UNLIMITED = -1
MOST = 1 << 31


class Budgeted(Protocol):
    """The fields of a body that may bound thoughts."""

    @property
    def thinking_token_budget(self) -> int | None: ...
    @property
    def thinking_budget(self) -> int | None: ...
    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...


def thinking_budget(body: Budgeted, tokenizer: Tokenizer) -> int | None:
    """The most tokens of thoughts; None for any number. Raises ApiError."""
    given: list[tuple[str, Any]] = [(name, getattr(body, name)) for name in FIELDS]
    given.append(("chat_template_kwargs", (body.chat_template_kwargs or {}).get(ARGUMENT)))
    found = [(name, value) for name, value in given if value is not None]
    for name, value in found:
        if not isinstance(value, int) or isinstance(value, bool) or not UNLIMITED <= value < MOST:
            message = f"{name}: a budget of thoughts is a number of tokens, or -1 for no limit."
            raise bad_request(message, name)
    if len({value for _, value in found}) > 1:
        raise bad_request(f"{found[1][0]} contradicts {found[0][0]}.", found[1][0])
    if not found or found[0][1] == UNLIMITED:
        return None
    if tokenizer.harmony:  # whose thoughts lie in channels
        name = found[0][0]
        raise bad_request(f"{name}: this model's thoughts cannot be bounded.", name, "unsupported")
    return int(found[0][1])
