"""What the routes answer, as types: only the OpenAPI document is made of them.

Answers are written as plain objects where they come about; tests hold them to these types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]
Finish = Literal["stop", "length", "tool_calls"]
Status = Literal["in_progress", "completed", "incomplete"]


class ErrorDetail(Struct):
    """What went wrong; ``param`` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """An error."""

    error: ErrorDetail


class CachedTokens(Struct):
    """Of the prompt's tokens, those that were not computed anew."""

    cached_tokens: Count


class Usage(Struct):
    """Tokens of a response."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens


class CalledFunction(Struct):
    """What is called; ``arguments`` is JSON text."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Struct, omit_defaults=True):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(Struct):
    """One reply."""

    index: Count
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: Finish


class ChatCompletion(Struct):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(Struct):
    """One continuation."""

    index: Count
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Finish


class TextCompletion(Struct):
    """The answer to a text."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[TextChoice]
    usage: Usage


class Drafts(Struct):
    """Drafts of a model; ``off`` says why there are none."""

    models: list[str]
    off: str | None


class Model(Struct):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    root: str
    parent: str | None
    max_model_len: Count | None
    attention: Literal["lent", "copied"] | None
    drafts: Drafts | None
    loaded: bool


class ModelList(Struct):
    """All models that there are for whoever asks."""

    object: Literal["list"]
    data: list[Model]


class Alive(Struct):
    """The process answers."""

    status: Literal["ok"]


class Health(Struct):
    """How the engine is."""

    status: str
    running: Count
    waiting: Count
    heartbeat_age_seconds: Annotated[float, Meta(ge=0)]


class Adapter(Struct):
    """An adapter as an operator sees it."""

    model: str
    name: str
    path: str
    pinned: bool
    resident: bool
    rows: Count
    nbytes: Count


class AdapterList(Struct):
    """The adapters of all loaded models."""

    adapters: list[Adapter]


class LoadState(Struct):
    """A configured model as an operator sees it."""

    name: str
    path: str
    state: Literal["unloaded", "loading", "loaded", "unloading"]
    keep_loaded: bool
    weights: Count
    kv: Count
    requests: Count
    error: str | None


class LoadStates(Struct):
    """All configured models."""

    models: list[LoadState]


class UsageReport(Struct):
    """What tenants have used, by the day."""

    usage: list[dict[str, Any]]
    lending: list[dict[str, Any]]


class Reload(Struct):
    """What holds after a reload."""

    tenants: list[str]
    keys: Count
    restart: list[str]


# of Anthropic's dialect


class AnthropicErrorDetail(Struct):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(Struct):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str


class MessageUsage(Struct):
    """Tokens of a message; the three kinds of input add up to the prompt."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count


class AnthropicMessage(Struct):
    """The answer to messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Struct):
    """Tokens of a prompt."""

    input_tokens: Count


class AnthropicModel(Struct):
    """A model in Anthropic's shape."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    max_input_tokens: Count | None
    max_tokens: Count | None


class AnthropicModels(Struct):
    """A page of models in Anthropic's shape."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


# of /v1/responses


class OutputText(Struct):
    """Text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[dict[str, Any]]


class OutputMessage(Struct, tag_field="type", tag="message"):
    """A message of the model's."""

    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningText(Struct):
    """A thought."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Struct, tag_field="type", tag="reasoning", omit_defaults=True):
    """Thoughts; ``encrypted_content`` is there where it was asked for."""

    id: str
    status: Status
    summary: list[dict[str, Any]]
    content: list[ReasoningText]
    encrypted_content: str = ""


class OutputFunctionCall(Struct, tag_field="type", tag="function_call", omit_defaults=True):
    """A call of a function; ``arguments`` is JSON text."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    namespace: str = ""


class OutputCustomCall(Struct, tag_field="type", tag="custom_tool_call", omit_defaults=True):
    """A call of a freeform tool."""

    id: str
    status: Status
    call_id: str
    name: str
    input: str
    namespace: str = ""


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall | OutputCustomCall


class InputTokens(Struct):
    """Of the input's tokens, those that were cached before, and those that are so now."""

    cached_tokens: Count
    cache_write_tokens: Count


class OutputTokens(Struct):
    """Of the output's tokens, those of thoughts."""

    reasoning_tokens: Count


class ResponseUsage(Struct):
    """Tokens of a response."""

    input_tokens: Count
    input_tokens_details: InputTokens
    output_tokens: Count
    output_tokens_details: OutputTokens
    total_tokens: Count


class ResponseBody(Struct):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: Count
    completed_at: Count | None
    status: Literal["completed", "failed", "in_progress", "cancelled", "incomplete"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    top_p: float
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    metadata: dict[str, str]
    usage: ResponseUsage | None


class DeletedResponse(Struct):
    """A response that is forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(Struct):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
