"""The body of ``/v1/responses``: its fields, their ranges, and those that are refused by name."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .body import Refused
from .errors import bad_request
from .fields import (
    MOST_TOP_LOGPROBS,
    REFUSED_ALIKE,
    VERBOSITIES,
    GenerationFields,
    StreamOptions,
    one_of,
)
from .response_input import ITEMS_SCHEMA
from .response_tools import TOOLS_SCHEMA
from .structured import Answer, json_answer, json_object
from .template_options import EFFORTS

SUMMARIES = ("auto", "concise", "detailed", "none")
TRUNCATIONS = ("auto", "disabled")
ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
# What hosted tools tell, which there are none of, and what an input holds, which has no images.
# Clients ask for it whenever they name such a tool.
NOTHING_TO_TELL = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)
INCLUDABLE = (ENCRYPTED, LOGPROBS, *NOTHING_TO_TELL)

REFUSED: Refused = REFUSED_ALIKE | {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": (),
    "moderation": (),
    "n": (1,),
    "prompt": (),
    "response_format": ({"type": "text"},),
}
FORMAT = "text.format"


class ResponseStreamOptions(StreamOptions):
    """What a stream carries beside its events."""

    include_obfuscation: bool | None = None


class TextConfig(msgspec.Struct):
    """How the text of a reply is to look; ``format`` is an object with a ``type``."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """How much is to be thought, and what is to be told of it."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(GenerationFields, kw_only=True):
    """The body; what is not listed is refused by name or has no effect."""

    input: str | Annotated[list[dict[str, Any]], Meta(extra_json_schema=ITEMS_SCHEMA)] = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextConfig | None = None
    tools: Annotated[list[dict[str, Any]], Meta(extra_json_schema=TOOLS_SCHEMA)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: int | None = None
    thinking_budget: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @property
    def reasoning_effort(self) -> str | None:
        """How much is to be thought, by the name that chats have for it."""
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def stored(self) -> bool:
        """Whether the response can be fetched, or continued, later."""
        return self.store is not False

    @property
    def encrypted(self) -> bool:
        """Whether thoughts are also to come in the form in which they are sent back."""
        return ENCRYPTED in (self.include or ())

    @property
    def logprobs(self) -> int | None:
        """How many alternatives to report; None where no log-probabilities are wanted."""
        wanted = LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted or self.top_logprobs else None

    def answer(self) -> Answer | None:
        """The form that the answer must have."""
        other = super().answer()
        format = self.text.format if self.text is not None else None
        if format is None or format.get("type") == "text":
            return other
        if other is not None or self.ignore_eos:
            field = "ignore_eos" if other is None else other.field
            raise bad_request(f"{field} contradicts {FORMAT}.", field)
        return _format(format)

    def check(self) -> None:
        """Refuses values that are out of range. Raises ApiError 400."""
        super().check()
        self._check_words()
        top, calls = self.top_logprobs, self.max_tool_calls
        if top is not None and not 0 <= top <= MOST_TOP_LOGPROBS:
            raise bad_request(
                f"top_logprobs must be between 0 and {MOST_TOP_LOGPROBS}.", "top_logprobs"
            )
        if calls is not None and not 1 <= calls < 1 << 31:
            raise bad_request("max_tool_calls must be at least 1.", "max_tool_calls")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise bad_request(
                "Obfuscated streams are not supported by this server.",
                "stream_options.include_obfuscation",
                "unsupported",
            )

    def _check_words(self) -> None:
        one_of("truncation", self.truncation, TRUNCATIONS)
        if self.reasoning is not None:
            one_of("reasoning.effort", self.reasoning.effort, EFFORTS)
            one_of("reasoning.summary", self.reasoning.summary, SUMMARIES)
            one_of("reasoning.generate_summary", self.reasoning.generate_summary, SUMMARIES)
        if self.text is not None:
            one_of("text.verbosity", self.text.verbosity, VERBOSITIES)
        for wanted in self.include or ():
            if wanted not in INCLUDABLE:
                there = ", ".join(INCLUDABLE)
                raise bad_request(
                    f"include: {wanted[:60]!r} is not supported; there are {there}.",
                    "include",
                    "unsupported",
                )


def _format(format: dict[str, Any]) -> Answer:
    """What ``text.format`` asks for. Raises ApiError 400."""
    kind = format.get("type")
    if kind == "json_object":
        return json_object(FORMAT)
    if kind != "json_schema":
        raise bad_request(f"The type of {FORMAT} is text, json_object or json_schema.", FORMAT)
    if "schema" not in format:
        raise bad_request(f"{FORMAT} needs a schema.", FORMAT)
    return json_answer(FORMAT, format["schema"], lenient=format.get("strict") is False)
