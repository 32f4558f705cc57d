"""The operations of the OpenAPI document: one for each method of each route."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from . import openapi_answers as answers
from .admin import Change, NewAdapter
from .chat import ChatRequest
from .completions import CompletionRequest
from .messages_fields import CountRequest, MessagesRequest
from .model_admin import WantedModel
from .response_fields import ResponseRequest
from .response_pages import MOST, ORDERS
from .usage_admin import FORMATS

JSON, EVENTS, TEXT, CSV = "application/json", "text/event-stream", "text/plain", "text/csv"
METRICS = "application/openmetrics-text"
BODY_STATUSES = 300  # below it, an answer is what was asked for

KEYS = (401, 403)
GENERATES = (400, 401, 403, 404, 413, 415, 429, 503)
MANAGES = (400, 401, 403, 404, 409, 413, 415, 503)


WORD: Mapping[str, Any] = MappingProxyType({"type": "string", "minLength": 1})


class Parameter(NamedTuple):
    """A part of a path, or of a query."""

    name: str
    place: Literal["path", "query", "header"]
    schema: Mapping[str, Any] = WORD

    def shown(self) -> dict[str, Any]:
        """As the document has it."""

        return {
            "name": self.name,
            "in": self.place,
            "required": self.place == "path",
            "schema": dict(self.schema),
        }


class Operation(NamedTuple):
    """A method of a route: ``good`` is what it answers with ``status``, ``errors`` the others.

    ``sick`` is what a probe answers with 503. Several types are one or the other of them.
    """

    method: str
    path: str
    name: str
    summary: str
    good: Any
    errors: tuple[int, ...] = ()
    status: int = 200
    body: Any = None
    parameters: tuple[Parameter, ...] = ()
    media: tuple[str, ...] = (JSON,)
    error: Any = answers.ErrorBody
    sick: Any = None

    def answers(self) -> dict[int, Any]:
        """The types of all answers, by status."""
        found = {self.status: self.good} | dict.fromkeys(self.errors, self.error)
        return found if self.sick is None else found | {503: self.sick}


MODEL = Parameter("model", "path")
RESPONSE = Parameter("response", "path")
DAY = {"type": "string", "format": "date"}
GENERATED = (JSON, EVENTS)

CHATS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answers a chat.",
        answers.ChatCompletion,
        GENERATES,
        body=ChatRequest,
        media=GENERATED,
    ),
    Operation(
        "POST",
        "/v1/completions",
        "createCompletion",
        "Continues texts.",
        answers.TextCompletion,
        GENERATES,
        body=CompletionRequest,
        media=GENERATED,
    ),
)
RESPONSES = (
    Operation(
        "POST",
        "/v1/responses",
        "createResponse",
        "Answers items of a conversation.",
        answers.ResponseBody,
        GENERATES,
        body=ResponseRequest,
        media=GENERATED,
    ),
    Operation(
        "GET",
        "/v1/responses/{response}",
        "getResponse",
        "A stored or running response.",
        answers.ResponseBody,
        (400, 404, *KEYS),
        parameters=(RESPONSE, Parameter("stream", "query", {"enum": ["false"]})),
    ),
    Operation(
        "DELETE",
        "/v1/responses/{response}",
        "deleteResponse",
        "Forgets a stored response.",
        answers.DeletedResponse,
        (404, *KEYS),
        parameters=(RESPONSE,),
    ),
    Operation(
        "POST",
        "/v1/responses/{response}/cancel",
        "cancelResponse",
        "Ends a running response.",
        answers.ResponseBody,
        (400, 404, *KEYS),
        parameters=(RESPONSE,),
    ),
    Operation(
        "GET",
        "/v1/responses/{response}/input_items",
        "listInputItems",
        "The items that a stored response answers.",
        answers.ItemList,
        (400, 404, *KEYS),
        parameters=(
            RESPONSE,
            Parameter("order", "query", {"enum": list(ORDERS)}),
            Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST}),
            Parameter("after", "query"),
        ),
    ),
)
MESSAGES = (
    Operation(
        "POST",
        "/v1/messages",
        "createMessage",
        "Answers messages, in Anthropic's dialect.",
        answers.AnthropicMessage,
        (*GENERATES, 529),
        body=MessagesRequest,
        media=GENERATED,
        error=answers.AnthropicError,
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        "countTokens",
        "How many tokens a message's prompt has.",
        answers.TokenCount,
        (*GENERATES, 529),
        body=CountRequest,
        error=answers.AnthropicError,
    ),
)
ANTHROPIC = Parameter("anthropic-version", "header")
MODELS = (
    Operation(
        "GET",
        "/v1/models",
        "listModels",
        "All models; in Anthropic's shape for its clients.",
        (answers.ModelList, answers.AnthropicModels),
        (400, *KEYS),
        parameters=(
            ANTHROPIC,
            Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000}),
            Parameter("after_id", "query"),
            Parameter("before_id", "query"),
        ),
        error=(answers.ErrorBody, answers.AnthropicError),
    ),
    Operation(
        "GET",
        "/v1/models/{model}",
        "getModel",
        "One model; in Anthropic's shape for its clients.",
        (answers.Model, answers.AnthropicModel),
        (404, *KEYS),
        parameters=(MODEL, ANTHROPIC),
        error=(answers.ErrorBody, answers.AnthropicError),
    ),
)
PROBES = (
    Operation("HEAD", "/", "here", "The server answers.", None, KEYS, media=()),
    Operation("GET", "/livez", "livez", "The process answers.", answers.Alive),
    Operation(
        "GET", "/health", "health", "How the engine is.", answers.Health, sick=answers.Health
    ),
    Operation("GET", "/ready", "ready", "Takes requests.", answers.Health, sick=answers.Health),
    Operation("GET", "/metrics", "metrics", "For Prometheus.", None, KEYS, media=(TEXT, METRICS)),
    Operation("GET", "/openapi.json", "openapi", "This document.", dict[str, Any], KEYS),
)
NAMED = (Parameter("name", "path"),)
ADMIN = (
    Operation(
        "GET", "/admin/adapters", "listAdapters", "All adapters.", answers.AdapterList, (*KEYS, 503)
    ),
    Operation(
        "POST",
        "/admin/adapters",
        "loadAdapter",
        "Loads one.",
        answers.AdapterList,
        MANAGES,
        201,
        body=NewAdapter,
    ),
    Operation(
        "PATCH",
        "/admin/adapters/{name}",
        "changeAdapter",
        "Pins one, or no longer.",
        answers.AdapterList,
        MANAGES,
        body=Change,
        parameters=NAMED,
    ),
    Operation(
        "DELETE",
        "/admin/adapters/{name}",
        "unloadAdapter",
        "Unloads one.",
        answers.AdapterList,
        (404, *KEYS, 503),
        parameters=NAMED,
    ),
    Operation(
        "GET", "/admin/models", "listLoads", "Configured models.", answers.LoadStates, (*KEYS, 503)
    ),
    Operation(
        "POST",
        "/admin/models",
        "loadModel",
        "Loads one.",
        answers.LoadStates,
        MANAGES,
        body=WantedModel,
    ),
    Operation(
        "DELETE",
        "/admin/models/{name}",
        "unloadModel",
        "Unloads one.",
        answers.LoadStates,
        (404, 409, *KEYS, 503),
        parameters=NAMED,
    ),
    Operation(
        "GET",
        "/admin/usage",
        "usage",
        "What tenants have used.",
        answers.UsageReport,
        (400, *KEYS, 503),
        parameters=(
            Parameter("from", "query", DAY),
            Parameter("to", "query", DAY),
            Parameter("tenant", "query"),
            Parameter("format", "query", {"enum": list(FORMATS)}),
        ),
        media=(JSON, CSV),
    ),
    Operation(
        "POST", "/admin/reload", "reload", "Takes changed settings.", answers.Reload, (400, *KEYS)
    ),
)
OPERATIONS = (*CHATS, *RESPONSES, *MESSAGES, *MODELS, *PROBES, *ADMIN)
