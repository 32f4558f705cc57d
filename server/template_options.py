"""What a chat's template is told beside messages and tools: whether to think, where to begin."""

from __future__ import annotations

from typing import Any, Protocol

from .errors import bad_request
from .thinking_budget import ARGUMENT

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
QUIET = ("none", "minimal")
SWITCHES = ("enable_thinking", "thinking")  # as templates call it
ARGUMENTS = (*SWITCHES, "reasoning_effort")


class Wishes(Protocol):
    """The fields of a body that the options come from."""

    @property
    def reasoning_effort(self) -> str | None: ...
    @property
    def enable_thinking(self) -> bool | None: ...
    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...
    @property
    def continue_final_message(self) -> bool | None: ...
    @property
    def add_generation_prompt(self) -> bool | None: ...


def template_options(body: Wishes, last_role: str) -> dict[str, Any]:
    """The options that a body asks for. Raises ApiError, also where it contradicts itself."""
    options = _effort(body.reasoning_effort, "reasoning_effort")
    for name, value in (body.chat_template_kwargs or {}).items():
        options |= {name: value} if name == ARGUMENT else _argument(name, value)
    if body.enable_thinking is not None:
        options["enable_thinking"] = body.enable_thinking
    _check_thinking(body)
    return options | _ending(body, last_role)


def _effort(effort: object, param: str) -> dict[str, Any]:
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise bad_request(f"reasoning_effort is one of {', '.join(EFFORTS)}.", param)
    return {"enable_thinking": effort not in QUIET, "reasoning_effort": effort}


def _argument(name: str, value: Any) -> dict[str, Any]:
    param = "chat_template_kwargs"
    if name not in ARGUMENTS:
        raise bad_request(f"chat_template_kwargs: {name[:40]!r} is not supported.", param)
    if name == "reasoning_effort":
        return _effort(value, param)
    if not isinstance(value, bool):
        raise bad_request(f"chat_template_kwargs: {name} is true or false.", param)
    return {name: value}


def _check_thinking(body: Wishes) -> None:
    """Refuses to think and not to think at once."""
    arguments = body.chat_template_kwargs or {}
    wanted = [("chat_template_kwargs", arguments[name]) for name in SWITCHES if name in arguments]
    if body.enable_thinking is not None:
        wanted.append(("enable_thinking", body.enable_thinking))
    if body.reasoning_effort == "none":
        wanted.append(("reasoning_effort", False))
    if len({value for _, value in wanted}) > 1:
        raise bad_request("The request wants thinking and does not want it.", wanted[0][0])


def _ending(body: Wishes, last_role: str) -> dict[str, Any]:
    """How the prompt is to end, where the request says so."""
    continued, generation = body.continue_final_message, body.add_generation_prompt
    if continued and generation:
        raise bad_request(
            "A message is continued or a new one begun, not both: set add_generation_prompt to "
            "false.",
            "continue_final_message",
        )
    if continued and last_role != "assistant":
        raise bad_request(
            "The last message is not the assistant's, so it cannot be continued.",
            "continue_final_message",
        )
    options: dict[str, Any] = {}
    if continued is not None:
        options["continue_final_message"] = continued
    if generation is not None:
        options["add_generation_prompt"] = generation
    return options
