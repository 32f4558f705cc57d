"""What the body of ``/v1/messages`` may hold: types and ranges.

Fields that are not listed, whichever beta they belong to, have no effect on a reply here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from .body import Refused
from .chat import MOST_TOOLS
from .errors import bad_request
from .fields import REFUSED_ALIKE, GenerationFields, checked_stops
from .structured import Answer, json_answer
from .template_options import EFFORTS
from .tool_choice import ToolChoice as Choice
from .tool_choice import tool_choice

LEAST_BUDGET = 1024  # tokens of thinking, as Anthropic has it
TIERS = ("auto", "standard_only")
THINKING = ("enabled", "adaptive", "between_tools", "disabled")
# How tool choices are called in OpenAI's dialect; a single tool is named.
CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": None}

REFUSED: Refused = REFUSED_ALIKE | {
    "mcp_servers": ([],),
    "n": (1,),
    "stop": (),
}
# Tools that Anthropic's own service runs. Nothing here could; a model that does not know of them
# answers without.
HOSTED = (
    "advisor",
    "code_execution",
    "mcp_toolset",
    "tool_search_tool",
    "web_fetch",
    "web_search",
)


class Block(msgspec.Struct):
    """A piece of a message's content; which fields it has depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    tool_name: str | None = None
    content: str | list[Block] | dict[str, Any] | None = None
    is_error: bool | None = None
    source: str | dict[str, Any] | None = None
    title: str | None = None
    cache_control: dict[str, Any] | None = None


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: str
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool on offer; without a ``type`` the client runs it."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None

    @property
    def hosted(self) -> bool:
        """Whether only Anthropic's service can run it."""
        return self.type is not None and self.type.startswith(HOSTED)


class ToolChoice(msgspec.Struct):
    """Whether and which tools are to be called."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Whether the model thinks before it answers, and for how many tokens at most."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class OutputConfig(msgspec.Struct):
    """How much effort an answer is worth, and its format."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class Metadata(msgspec.Struct):
    """Who asks, as the client knows them."""

    user_id: str | None = None


class Thoughts(NamedTuple):
    """What a request wants of thinking; ``budget`` in tokens, ``shown`` to the client."""

    enabled: bool
    budget: int | None
    shown: bool


class CountRequest(GenerationFields, kw_only=True):
    """A request for the number of its prompt's tokens."""

    messages: list[Message]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None  # where it was before output_config
    cache_control: dict[str, Any] | None = None

    @property
    def one_call(self) -> bool:
        """Whether a reply has at most one tool call."""
        return bool(self.tool_choice and self.tool_choice.disable_parallel_tool_use)

    @property
    def marked(self) -> bool:
        """Whether the client asks for its prompt to be cached, by a mark anywhere in it."""
        blocks = list(self.system) if isinstance(self.system, list) else []
        for message in self.messages:
            blocks += message.content if isinstance(message.content, list) else ()
        marks = [*blocks, *(self.tools or ()), self]
        return any(marked.cache_control is not None for marked in marks)

    def thoughts(self) -> Thoughts:
        """What is wanted of thinking; none unless it is asked for. Raises ApiError."""
        wanted = self.thinking
        if wanted is None or wanted.type == "disabled":
            return Thoughts(False, None, True)
        if wanted.type not in THINKING:
            there = ", ".join(THINKING)
            raise bad_request(
                f"{wanted.type[:40]!r} is no way to think; there are {there}.", "thinking.type"
            )
        budget = self._budget(wanted) if wanted.type == "enabled" else None
        return Thoughts(True, budget, wanted.display != "omitted")

    def _budget(self, wanted: Thinking) -> int:
        budget, param = wanted.budget_tokens, "thinking.budget_tokens"
        if budget is None or budget < LEAST_BUDGET:
            raise bad_request(f"A budget of at least {LEAST_BUDGET} tokens is needed.", param)
        if self.max_tokens is not None and budget >= self.max_tokens:
            raise bad_request("The budget must be less than max_tokens.", param)
        return budget

    def template_options(self) -> dict[str, Any]:
        """What the template is told beside the messages. Raises ApiError."""
        options: dict[str, Any] = {"enable_thinking": self.thoughts().enabled}
        effort = self.output_config.effort if self.output_config else None
        if effort is not None:
            if effort not in EFFORTS:
                there = ", ".join(EFFORTS)
                raise bad_request(f"effort is one of {there}.", "output_config.effort")
            options["reasoning_effort"] = effort
        return options

    def offered(self) -> list[dict[str, Any]]:
        """The tools that the client runs, as templates know them. Raises ApiError."""
        tools = self.tools or []
        if len(tools) > MOST_TOOLS:
            raise bad_request(f"At most {MOST_TOOLS} tools are possible.", "tools")
        return [_function(i, tool) for i, tool in enumerate(tools) if not tool.hosted]

    def choice(self, offered: Sequence[Mapping[str, Any]]) -> Choice:
        """Whether and which of the tools are to be called. Raises ApiError."""
        wanted = self.tool_choice
        if wanted is None:
            return Choice()
        if wanted.type not in CHOICES:
            raise bad_request(f"type is one of {', '.join(CHOICES)}.", "tool_choice.type")
        named = {"type": "function", "name": wanted.name}
        return tool_choice(CHOICES[wanted.type] or named, offered)

    def answer(self) -> Answer | None:
        """The form that the answer must have. Raises ApiError."""
        param = "output_config.format"
        form = None if self.output_config is None else self.output_config.format
        if form is None:
            form, param = self.output_format, "output_format"
        if form is None:
            return super().answer()
        if form.get("type") != "json_schema" or "schema" not in form:
            raise bad_request("A format is of type json_schema and has a schema.", param)
        return json_answer(param, form["schema"])


class MessagesRequest(CountRequest, kw_only=True):
    """A request for a message."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None  # type: ignore[assignment]  # Anthropic's has one field

    @property
    def agent(self) -> str:
        """Which of a tenant's agents asks; empty where it does not say."""
        return (self.metadata.user_id if self.metadata else None) or ""

    def stops(self) -> list[str]:
        """The stop strings."""
        return checked_stops(self.stop_sequences or [], "stop_sequences")

    def check_tier(self) -> None:
        """Refuses a service tier that Anthropic does not have; those that it has are all one."""
        if self.service_tier is not None and self.service_tier not in TIERS:
            there = " and ".join(map(repr, TIERS))
            raise bad_request(f"There are {there}, which mean the same here.", "service_tier")


def _function(index: int, tool: Tool) -> dict[str, Any]:
    where = f"tools[{index}]"
    if not tool.name:
        raise bad_request("A tool needs a name.", f"{where}.name")
    if tool.input_schema is None and tool.type not in (None, "custom"):
        message = (
            f"Only Anthropic's models know the arguments of {tool.type!r}; "
            "send it as a tool with an input_schema."
        )
        raise bad_request(message, f"{where}.type", "unsupported")
    if tool.input_schema is None:
        raise bad_request("A tool needs an input_schema.", f"{where}.input_schema")
    function = {"name": tool.name, "description": tool.description}
    known = {key: value for key, value in function.items() if value is not None}
    return {"type": "function", "function": {**known, "parameters": tool.input_schema}}
