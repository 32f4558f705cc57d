"""``/v1/responses``: OpenAI's Responses dialect, streaming and not, with stored responses."""

from __future__ import annotations

import uuid
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from engine.grammar import Grammar
from engine.params import SamplingParams
from engine.tokenizer import Prompt
from engine.variant import Variant
from scheduler.live import LoadedModel
from scheduler.service import Service

from .auth import tenant_of
from .body import read_json
from .caller import Caller, caller_of
from .clients import ClientGone, while_connected
from .constraints import compiled, wanted
from .dialect import Dialect, encode
from .errors import ApiError, bad_request
from .fields import Room
from .generation import Plan, TextThreads, reserve, submit
from .replies import ChatReplies, chat_prompt
from .request_log import CLIENT_CLOSED
from .response_fields import REFUSED, ResponseRequest
from .response_input import Item, read_items
from .response_items import Items
from .response_messages import template_messages
from .response_object import ResponseObject
from .response_pages import page
from .response_reply import Place, Reply
from .response_store import ResponseStore, Stored
from .response_stream import ResponseStream
from .response_tools import Toolbox
from .stable import Stable
from .template_options import template_options
from .thinking_budget import thinking_budget


class Responses(Dialect):
    """Answers, and keeps what was answered for whoever comes back to it."""

    def __init__(self, service: Service, threads: TextThreads, default_max_tokens: int) -> None:
        super().__init__(service, threads, default_max_tokens)
        self._store = ResponseStore()

    async def post(self, request: Request) -> Response:
        """``POST /v1/responses``."""
        body = await read_json(request, ResponseRequest, REFUSED)
        caller = caller_of(request.scope, body)
        body.check()
        target = self.serves(caller.tenant, body.model, body.adapter, body.draft_model)
        asked = self._asked(body, caller)
        service, served = self.service, target.served
        places = reserve(service, request, served, 1, 1)
        with places, service.use(served) as use:
            model = await self.loaded(request, served, use)
            variant = self.variant(model, target, body.draft_model)
            room = Room(model.info.max_model_len, self.default_max_tokens, caller.tenant.limits)
            plan = _Plan(model, body, asked, variant, room, self.stable(served))
            grammar = await compiled(
                self.threads, model, plan.wanted, caller.tenant, served.metrics
            )
            prompt = await self.threads.run(partial(plan.prompt, caller.domain))
            name = f"resp_{uuid.uuid4().hex}"
            plans = [plan.plan(prompt, grammar)]
            generation = submit(service, served, places, plans, 1, name, caller)
        response = ResponseObject(name, body, caller.tier, plan.sampling)
        items = Items(asked.tools, encrypted=body.encrypted)
        place = Place(self._store, caller.tenant.name, body.stored, asked.items, asked.new)
        logprobs = model.tokenizer if body.logprobs is not None else None
        reply = Reply(generation, prompt, response, items, place, logprobs)
        return ResponseStream(reply) if body.stream else await _whole(request, reply)

    async def get(self, request: Request) -> Response:
        """``GET /v1/responses/ID``; also of one that runs."""
        _refuse_parameters(request, {"stream": ("false",)})
        tenant, name = _named(request)
        running = self._store.running(tenant, name)
        if running is not None and running.kept:
            return _json(encode(running.now()))
        return _json(self._stored(tenant, name).body)

    async def delete(self, request: Request) -> Response:
        """``DELETE /v1/responses/ID``."""
        tenant, name = _named(request)
        if not self._store.delete(tenant, name):
            raise _unknown(name)
        return _json(encode({"id": name, "object": "response", "deleted": True}))

    async def cancel(self, request: Request) -> Response:
        """``POST /v1/responses/ID/cancel``: one that runs ends; 400 for one that has ended."""
        tenant, name = _named(request)
        running = self._store.running(tenant, name)
        if running is None:
            self._stored(tenant, name)
            raise bad_request("This response has ended; it cannot be cancelled.", "response_id")
        body = await running.cancel()
        if body is None:
            raise _unknown(name)
        return _json(body)

    async def input_items(self, request: Request) -> Response:
        """``GET /v1/responses/ID/input_items``: what its model was given, in pages."""
        tenant, name = _named(request)
        return _json(encode(page(self._stored(tenant, name).items(), request)))

    def _asked(self, body: ResponseRequest, caller: Caller) -> _Asked:
        """The conversation and the tools of a request. Raises ApiError 400, 404."""
        tenant = caller.tenant.name
        before: list[Item] = []
        if body.previous_response_id is not None:
            stored = self._store.find(tenant, body.previous_response_id)
            if stored is None:
                raise _no_previous(body.previous_response_id)
            before = stored.conversation()
        items = read_items(body.input, self._store.recall(tenant))
        tools = Toolbox(body.tools or [], body.tool_choice)
        return _Asked([*before, *items], len(items), tools)

    def _stored(self, tenant: str, name: str) -> Stored:
        stored = self._store.find(tenant, name)
        if stored is None:
            raise _unknown(name)
        return stored


class _Asked:
    """All items that the model is given, of which the last ``new`` came with the request."""

    def __init__(self, items: list[Item], new: int, tools: Toolbox) -> None:
        self.items = items
        self.new = new
        self.tools = tools


class _Plan:
    """A checked request; ``prompt`` is to run on a worker thread."""

    def __init__(
        self,
        model: LoadedModel,
        body: ResponseRequest,
        asked: _Asked,
        variant: Variant,
        room: Room,
        stable: Stable,
    ) -> None:
        self._stable = stable
        self._tokenizer = model.tokenizer
        self._body = body
        self._tools = asked.tools.offered
        self._room = room
        self._messages = template_messages(asked.items, asked.tools, body.instructions)
        self._budget = thinking_budget(body, model.tokenizer)
        self._options = template_options(body, self._messages[-1]["role"])
        tools, one = asked.tools, body.parallel_tool_calls is False
        self.wanted = wanted(
            body.answer(), tools.choice, tools.all, self._tokenizer, one=one, formats=tools.formats
        )
        self._replies = ChatReplies(
            model, body, variant, self._tools, self.wanted, one_call=one, logprobs=body.logprobs
        )

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are chosen."""
        return self._replies.sampling

    def prompt(self, domain: str) -> Prompt:
        """Renders and tokenises, in a trust domain. Raises ApiError."""
        tools = self._stable.tools(self._tools)
        return chat_prompt(self._tokenizer, self._messages, tools, self._options, domain, "input")

    def plan(self, prompt: Prompt, grammar: Grammar | None) -> Plan:
        """How the engine is to answer. Raises ApiError where the context does not last."""
        wanted = self._body.max_output_tokens
        most = self._room.reply(len(prompt.tokens), wanted, "max_output_tokens", "input")
        return self._replies.plan(prompt, most, grammar, self._budget)


async def _whole(request: Request, reply: Reply) -> Response:
    """The whole response, unless the client hangs up before."""
    try:
        return _json(encode(await while_connected(request.receive, reply.whole())))
    except ClientGone:
        reply.generation.metrics.client_disconnect()
        return Response(status_code=CLIENT_CLOSED)
    finally:
        reply.close()


def _named(request: Request) -> tuple[str, str]:
    """The tenant that asks, and the response that is meant."""
    return tenant_of(request.scope).name, request.path_params["response"]


def _refuse_parameters(request: Request, harmless: dict[str, tuple[str, ...]]) -> None:
    for name, values in harmless.items():
        if request.query_params.get(name, values[0]) not in values:
            raise bad_request(f"{name} is not supported by this server.", name, "unsupported")


def _unknown(name: str) -> ApiError:
    return ApiError(404, _absent(name), code="response_not_found", param="response_id")


def _no_previous(name: str) -> ApiError:
    """As OpenAI has it: clients that know the code send the whole conversation instead."""
    return bad_request(_absent(name), "previous_response_id", "previous_response_not_found")


def _absent(name: str) -> str:
    return f"There is no response {name[:80]!r}; it may have been long ago."


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
