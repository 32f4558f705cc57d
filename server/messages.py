"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's dialect, streaming and not."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.grammar import Grammar
from engine.tokenizer import Prompt
from engine.variant import Variant
from scheduler.live import LoadedModel

from .body import read_json
from .caller import caller_as
from .constraints import compiled, wanted
from .dialect import Dialect, encode
from .errors import ApiError, bad_request
from .fields import Room
from .generation import Choice, Generation, Piece, Plan, Usage, reserve, submit
from .messages_fields import REFUSED, CountRequest, MessagesRequest
from .messages_prompt import conversation, system_blocks
from .messages_reply import Stop, content_of, usage_dict
from .messages_stream import ANTHROPIC, MessageEvents, thinking_tokens
from .replies import ChatReplies, chat_prompt
from .stable import Stable


class Messages(Dialect):
    """Answers messages, and counts their prompts."""

    async def post(self, request: Request) -> Response:
        """``POST /v1/messages``."""
        body = await read_json(request, MessagesRequest, REFUSED)
        body.check_tier()
        caller = caller_as(request.scope, body.agent, body.cache_salt, None)
        target = self.serves(caller.tenant, body.model, body.adapter, body.draft_model)
        served, service = target.served, self.service
        places = reserve(service, request, served, 1, 1)
        with places, service.use(served) as use:
            model = await self.loaded(request, served, use)
            variant = self.variant(model, target, body.draft_model)
            room = Room(model.info.max_model_len, self.default_max_tokens, caller.tenant.limits)
            asked = _Asked(model, body, self.stable(served))
            reply = _Reply(model, body, variant, room, asked)
            grammar = await compiled(
                self.threads, model, reply.wanted, caller.tenant, served.metrics
            )
            prompt = await self.threads.run(partial(asked.prompt, caller.domain))
            name = f"msg_{uuid.uuid4().hex}"
            plan = reply.plan(prompt, grammar)
            generation = submit(service, served, places, [plan], 1, name, caller)
        return await self._answer(request, generation, plan, _Frame(name, body, plan, self._caches))

    async def count(self, request: Request) -> Response:
        """``POST /v1/messages/count_tokens``: what the same request's prompt will count."""
        body = await read_json(request, CountRequest, REFUSED)
        caller = caller_as(request.scope, "", body.cache_salt, None)
        target = self.serves(caller.tenant, body.model, body.adapter, body.draft_model)
        # The template costs what it costs for a message, so that it waits its turn alike.
        places = reserve(self.service, request, target.served, 1, 1)
        with places, self.service.use(target.served) as use:
            model = await self.loaded(request, target.served, use)
            asked = _Asked(model, body, self.stable(target.served))
            prompt = await self.threads.run(partial(asked.prompt, caller.domain))
        count = encode({"input_tokens": len(prompt.tokens)})
        return Response(count, media_type="application/json")

    @property
    def _caches(self) -> bool:
        return self.service.config.prefix_cache

    async def _answer(
        self, request: Request, generation: Generation, plan: Plan, frame: _Frame
    ) -> Response:
        if frame.stream:
            writer = frame.events()
            prompts = [plan.prompt]
            return self.stream(generation, prompts, writer, usage=True, manner=ANTHROPIC)
        (choice,) = generation.choices
        body = partial(frame.message, choice)
        return await self.completed(request, generation, [plan.prompt], body)


class _Asked:
    """A checked conversation; ``prompt`` is to run on a worker thread."""

    def __init__(self, model: LoadedModel, body: CountRequest, stable: Stable) -> None:
        self._tokenizer = model.tokenizer
        self._body = body
        self._stable = stable
        self._system = system_blocks(body.system)
        self.tools = body.offered()
        self.choice = body.choice(self.tools)
        self.shown = self.choice.shown(self.tools)
        self._options = body.template_options()

    def prompt(self, domain: str) -> Prompt:
        """Renders and tokenises, in a trust domain. Raises ApiError."""
        system = self._stable.system(self._system)
        tools = self._stable.tools(self.shown)
        messages = conversation(system, self._body.messages)
        return chat_prompt(self._tokenizer, messages, tools, self._options, domain, "messages")


class _Reply:
    """How a message is to be answered, but for its prompt."""

    def __init__(
        self, model: LoadedModel, body: MessagesRequest, variant: Variant, room: Room, asked: _Asked
    ) -> None:
        self._body = body
        self._room = room
        one = body.one_call
        self.wanted = wanted(body.answer(), asked.choice, asked.tools, model.tokenizer, one=one)
        self._replies = ChatReplies(model, body, variant, asked.shown, self.wanted, one_call=one)

    def plan(self, prompt: Prompt, grammar: Grammar | None) -> Plan:
        """The whole. Raises ApiError where the context does not last."""
        most = self._most(len(prompt.tokens))
        return self._replies.plan(prompt, most, grammar, self._body.thoughts().budget)

    def _most(self, prompt: int) -> int:
        try:
            return self._room.reply(prompt, self._body.max_tokens, "max_tokens", "messages")
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            # In these words: clients read the two numbers, and shorten what they send.
            own = self._room.limits.context
            context = self._room.context if own is None else min(own, self._room.context)
            message = f"prompt is too long: {prompt} tokens > {context - 1} maximum"
            raise bad_request(message, error.param, error.code) from error


class _Frame:
    """What the forms of one response have in common."""

    def __init__(self, name: str, body: MessagesRequest, plan: Plan, caches: bool) -> None:
        self.stream = body.stream is True
        self._name = name
        self._model = body.model
        self._prompt = len(plan.prompt.tokens)
        self._shown = body.thoughts().shown
        self._clipped = plan.max_tokens < body.max_tokens
        self._writes = caches and body.marked

    def events(self) -> MessageEvents:
        """The writer of a stream."""
        begun = self._message([], Usage(self._prompt, 0, 0), None)
        return MessageEvents(begun, shown=self._shown, clipped=self._clipped, writes=self._writes)

    def message(self, choice: Choice, replies: list[list[Piece]], usage: Usage) -> dict[str, Any]:
        """The whole message."""
        (pieces,) = replies
        content = content_of([piece.delta for piece in pieces], shown=self._shown)
        return self._message(content, usage, Stop.of(choice, clipped=self._clipped))

    def _message(
        self, content: list[dict[str, Any]], usage: Usage, stop: Stop | None
    ) -> dict[str, Any]:
        told: dict[str, Any] = usage_dict(usage, writes=self._writes and stop is not None)
        written = told["cache_creation_input_tokens"]
        kept = {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0}
        return {
            "id": self._name,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop and stop.stop_reason,
            "stop_sequence": stop and stop.stop_sequence,
            "usage": {
                **told,
                **thinking_tokens(usage),
                "cache_creation": kept,
                "service_tier": "standard",
            },
        }
