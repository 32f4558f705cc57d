"""``/v1/chat/completions``: the OpenAI chat dialect, streaming and not."""

from __future__ import annotations

import json
import time
import uuid
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engine.grammar import Grammar
from engine.tokenizer import Message, Prompt, Tokenizer
from engine.variant import Variant
from scheduler.live import LoadedModel

from .body import Refused, read_json
from .caller import caller_of
from .constraints import compiled, wanted
from .dialect import Dialect, Frame
from .errors import bad_request
from .fields import (
    MOST_TOP_LOGPROBS,
    REFUSED_ALIKE,
    VERBOSITIES,
    GenerationFields,
    Room,
    one_of,
)
from .generation import Choice, Piece, Plan, Usage, reserve, submit
from .logprobs import chat_logprobs
from .output import CallDelta, Delta
from .replies import ChatReplies, chat_prompt
from .stable import Stable
from .template_options import template_options
from .thinking_budget import thinking_budget
from .tool_choice import tool_choice

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 10_000
MOST_TOOLS = 1024

REFUSED: Refused = REFUSED_ALIKE | {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "web_search_options": (),
}


class Part(msgspec.Struct):
    """A piece of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Function(msgspec.Struct):
    """What a tool call calls; ``arguments`` is JSON text."""

    name: str
    arguments: str | dict[str, Any] = ""


class Call(msgspec.Struct):
    """A tool call that an earlier turn made."""

    function: Function
    id: str | None = None
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """One message of the conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ToolFunction(msgspec.Struct):
    """A function that the model may call; its schema is passed on as it is."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """One offered tool."""

    function: ToolFunction
    type: str = "function"


class Prediction(msgspec.Struct, tag_field="type", tag="content"):
    """Text that the reply is expected to hold; it could save time, never change the reply."""

    content: str | list[Part]


class ChatRequest(GenerationFields, kw_only=True):
    """The body of a chat completion; what is not listed is checked by name or has no effect."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: int | None = None
    thinking_budget: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    prediction: Prediction | None = None
    verbosity: str | None = None

    def check(self) -> None:
        """Refuses values that are out of range. Raises ApiError 400."""
        super().check()
        one_of("verbosity", self.verbosity, VERBOSITIES)


class ChatCompletions(Dialect):
    """Answers chats."""

    async def post(self, request: Request) -> Response:
        """The route."""
        body = await read_json(request, ChatRequest, REFUSED)
        body.check()
        caller, service = caller_of(request.scope, body), self.service
        target = self.serves(caller.tenant, body.model, body.adapter, body.draft_model)
        served, copies = target.served, body.choices
        places = reserve(service, request, served, copies, copies)
        with places, service.use(served) as use:
            model = await self.loaded(request, served, use)
            variant = self.variant(model, target, body.draft_model)
            room = Room(model.info.max_model_len, self.default_max_tokens, caller.tenant.limits)
            plan = _Plan(model, body, variant, room, self.stable(served))
            grammar = await compiled(
                self.threads, model, plan.wanted, caller.tenant, served.metrics
            )
            prompt = await self.threads.run(partial(plan.prompt, caller.domain))
            name = f"chatcmpl-{uuid.uuid4().hex}"
            generation = submit(
                service, served, places, [plan.plan(prompt, grammar)], copies, name, caller
            )
        tier = None if body.service_tier is None else caller.tier
        frame = Frame(name, "chat.completion", body.model, int(time.time()), tier)
        if body.stream:
            writer = _Chunks(model.tokenizer, frame, body.logprobs is True)
            return self.stream(generation, [prompt], writer, usage=body.wants_usage)
        shape = partial(_message, model.tokenizer, body.logprobs is True)
        return await self.whole(request, generation, [prompt], frame, shape)


class _Plan:
    """A checked request; ``prompt`` is to run on a worker thread."""

    def __init__(
        self,
        model: LoadedModel,
        body: ChatRequest,
        variant: Variant,
        room: Room,
        stable: Stable,
    ) -> None:
        self._stable = stable
        self._tokenizer = model.tokenizer
        self._body = body
        self._room = room
        self._messages = message_dicts(body.messages)
        tools = tool_dicts(body.tools or [])
        choice = tool_choice(body.tool_choice, tools)
        self._tools = choice.shown(tools)
        self._budget = thinking_budget(body, model.tokenizer)
        self._options = template_options(body, body.messages[-1].role)
        one = body.parallel_tool_calls is False
        self.wanted = wanted(body.answer(), choice, tools, self._tokenizer, one=one)
        logprobs = _top_logprobs(body)
        self._replies = ChatReplies(
            model, body, variant, self._tools, self.wanted, one_call=one, logprobs=logprobs
        )

    def prompt(self, domain: str) -> Prompt:
        """Renders and tokenises, in a trust domain. Raises ApiError."""
        tools = self._stable.tools(self._tools)
        return chat_prompt(
            self._tokenizer, self._messages, tools, self._options, domain, "messages"
        )

    def plan(self, prompt: Prompt, grammar: Grammar | None) -> Plan:
        """How the engine is to answer. Raises ApiError where the context does not last."""
        body, wanted, param = self._body, self._body.max_tokens, "max_tokens"
        if body.max_completion_tokens is not None:
            wanted, param = body.max_completion_tokens, "max_completion_tokens"
        most = self._room.reply(len(prompt.tokens), wanted, param, "messages")
        return self._replies.plan(prompt, most, grammar, self._budget)


# what comes in


def message_dicts(messages: list[ChatMessage]) -> list[Message]:
    """Messages as templates know them. Raises ApiError."""
    if not messages:
        raise bad_request("messages is empty.", "messages")
    if len(messages) > MOST_MESSAGES:
        raise bad_request(f"At most {MOST_MESSAGES} messages are possible.", "messages")
    made = [_message_dict(i, m) for i, m in enumerate(messages)]
    if made[-1].get("tool_calls"):  # a template continues a text; it would drop the calls
        raise bad_request("The last call of a tool has no result.", "messages")
    return made


def _message_dict(index: int, message: ChatMessage) -> Message:
    where = f"messages[{index}]"
    if message.role not in ROLES:
        raise bad_request(
            f"{message.role[:40]!r} is not a role; there are {', '.join(ROLES)}.", f"{where}.role"
        )
    role = "system" if message.role == "developer" else message.role
    made: Message = {"role": role, "content": _text(where, message.content)}
    if message.content is None and role != "assistant":
        raise bad_request(f"A {role} message needs content.", f"{where}.content")
    if message.tool_calls and role == "assistant":
        made["tool_calls"] = [_call_dict(call) for call in message.tool_calls]
    thought = message.reasoning_content or message.reasoning
    if thought and role == "assistant":
        made["reasoning_content"] = thought
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            made[name] = value
    return made


def _text(where: str, content: str | list[Part] | None) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            raise bad_request(
                f"This model reads text only; a part of type {part.type[:40]!r} cannot be served.",
                f"{where}.content[{i}].type",
            )
    return "\n".join([part.text or part.refusal or "" for part in content])


def _call_dict(call: Call) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None  # what a model once wrote need not be JSON; the template gets the text
        arguments = parsed if isinstance(parsed, dict) else arguments
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def tool_dicts(tools: list[Tool]) -> list[dict[str, Any]]:
    """Tools as templates know them. Raises ApiError."""
    if len(tools) > MOST_TOOLS:
        raise bad_request(f"At most {MOST_TOOLS} tools are possible.", "tools")
    for i, tool in enumerate(tools):
        if tool.type != "function":
            raise bad_request(f"A tool of type {tool.type[:40]!r} cannot be served.", f"tools[{i}]")
    return [{"type": "function", "function": _function_dict(tool.function)} for tool in tools]


def _function_dict(function: ToolFunction) -> dict[str, Any]:
    """What is given of a function; its schema, which may be large, is not copied."""
    given = {name: getattr(function, name) for name in function.__struct_fields__}
    return {name: value for name, value in given.items() if value is not None}


def _top_logprobs(body: ChatRequest) -> int | None:
    """How many alternatives to report; None where no log-probabilities are wanted."""
    top = body.top_logprobs
    if top is not None and not 0 <= top <= MOST_TOP_LOGPROBS:
        raise bad_request(
            f"top_logprobs must be between 0 and {MOST_TOP_LOGPROBS}.", "top_logprobs"
        )
    if top and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    return (top or 0) if body.logprobs else None


# what goes out


def _call(call: CallDelta) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _call_piece(call: CallDelta) -> dict[str, Any]:
    """The same in a chunk: a call's name comes with its first piece alone."""
    if call.name:
        return {"index": call.number, **_call(call)}
    return {"index": call.number, "function": {"arguments": call.arguments}}


def _fields(delta: Delta) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if delta.text:
        fields["content"] = delta.text
    if delta.thought:
        fields["reasoning_content"] = fields["reasoning"] = delta.thought
    return fields


def _message(
    tokenizer: Tokenizer, logprobs: bool, choice: Choice, pieces: list[Piece]
) -> dict[str, Any]:
    """A whole choice."""
    delta = Delta.joined([p.delta for p in pieces])
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    message |= _fields(delta)
    if delta.calls:
        message["tool_calls"] = [_call(c) for c in delta.calls]
    elif message["content"] is None:
        message["content"] = ""
    tokens = [t for p in pieces for t in p.tokens]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": chat_logprobs(tokenizer, tokens) if logprobs else None,
        "finish_reason": choice.finish_reason,
    }


class _Chunks:
    """The chunks of a streamed chat."""

    def __init__(self, tokenizer: Tokenizer, frame: Frame, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._frame = frame._replace(object="chat.completion.chunk")
        self._logprobs = logprobs

    def first(self, choice: Choice) -> bytes:
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        fields = _fields(piece.delta)
        if piece.delta.calls:
            fields["tool_calls"] = [_call_piece(c) for c in piece.delta.calls]
        if not (fields or self._logprobs):
            return b""  # a token that shows nothing yet
        logprobs = chat_logprobs(self._tokenizer, piece.tokens) if self._logprobs else None
        return self._chunk(choice, fields, logprobs=logprobs)

    def last(self, choice: Choice) -> bytes:
        return self._chunk(choice, {}, finish_reason=choice.finish_reason)

    def usage(self, usage: Usage) -> bytes:
        return self._frame.event([], usage)

    def _chunk(self, choice: Choice, delta: dict[str, Any], **more: Any) -> bytes:
        shape = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._frame.event([shape | more])
