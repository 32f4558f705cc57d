"""What the dialects share: the model's name, the frame of objects, streams and bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.tokenizer import Prompt
from engine.variant import Variant
from scheduler.live import LoadedModel
from scheduler.served import Served, Target
from scheduler.service import Service
from scheduler.streams import EngineDead, ModelFailed, UnknownAdapter, UnknownModel
from scheduler.tenant import Tenant
from scheduler.use import Use

from .caller import may_use
from .clients import ClientGone, while_connected
from .errors import ERROR, REQUEST_ID, ApiError, error_answer, error_body
from .generation import Choice, Generation, Piece, TextThreads, Usage, complete, not_loaded
from .request_log import CLIENT_CLOSED, note_model
from .sse import COMMENT, Emit, EventStream, KeepAlive, event
from .stable import Stable

encode = msgspec.json.Encoder().encode
DONE = event(b"[DONE]")
NO_DRAFTS = "the server was told no draft model for it"

Shape = Callable[[Choice, list[Piece]], dict[str, Any]]
Body = Callable[[list[list[Piece]], Usage], dict[str, Any]]


def usage_dict(usage: Usage) -> dict[str, Any]:
    """Usage in the OpenAI shape."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


class Frame(NamedTuple):
    """What all objects of one response have in common; ``created`` in Unix seconds.

    ``service_tier`` is there where the request named one.
    """

    id: str
    object: str
    model: str
    created: int
    service_tier: str | None = None

    def body(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """An object with these choices."""
        body: dict[str, Any] = {**self._asdict(), "choices": choices}
        if self.service_tier is None:
            del body["service_tier"]
        if usage is not None:
            body["usage"] = usage_dict(usage)
        return body

    def event(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        """The same as an event of a stream."""
        return event(encode(self.body(choices, usage)))


class Writer(Protocol):
    """The events of a stream; no event is empty bytes."""

    def first(self, choice: Choice) -> bytes: ...
    def piece(self, choice: Choice, piece: Piece) -> bytes: ...
    def last(self, choice: Choice) -> bytes: ...
    def usage(self, usage: Usage) -> bytes: ...


class Manner(NamedTuple):
    """How a dialect's streams stay alive, fail and end.

    ``failed`` makes the last event of an error and the name of the request.
    """

    keep_alive: KeepAlive
    failed: Callable[[ApiError, str], bytes]
    done: bytes


# No [DONE] after an error: what came before is not a whole reply.
OPENAI = Manner(COMMENT, lambda error, _: event(encode(error_body(error))), DONE)


def unknown_model(service: Service, tenant: Tenant, model: str, adapter: str | None) -> ApiError:
    """The error for a model, or an adapter, that is not there for a tenant."""
    visible = [served for served in service.models if may_use(tenant, served, None)]
    if adapter is not None and any(served.name == model for served in visible):
        served = service.models[model]
        names = sorted(name for name in served.adapters if may_use(tenant, served, name))
        has = f"it has {', '.join(names[:20])}" if names else "it has none"
        message = f"The model {model!r} has no adapter {adapter[:200]!r}; {has}."
        return ApiError(404, message, code="model_not_found", param="adapter")
    message = f"The model {model[:200]!r} does not exist; /v1/models lists what does."
    return ApiError(404, message, code="model_not_found", param="model")


def unknown_draft(served: Served, draft: str, names: Sequence[str], off: str) -> ApiError:
    """The error for a draft that the model does not have; ``off`` says why it may have none."""
    has = f"it has {', '.join(names)}" if names else f"it has none: {off}"
    message = f"The model {served.name!r} has no draft {draft[:200]!r}; {has}."
    return ApiError(404, message, code="model_not_found", param="draft_model")


class Dialect:
    """A route that answers with replies of the served models."""

    def __init__(self, service: Service, threads: TextThreads, default_max_tokens: int) -> None:
        self.service = service
        self.threads = threads
        self.default_max_tokens = default_max_tokens

    def serves(
        self,
        tenant: Tenant,
        model: str,
        adapter: str | None,
        draft: str | UnsetType | None = UNSET,
    ) -> Target:
        """What is meant, as far as it is known of a model that may yet have to be loaded.

        What ``tenant`` may not use does not exist. Raises ApiError 404, or 503
        while the main model is loading.
        """
        note_model(model if adapter is None else f"{model}:{adapter}")
        health = self.service.health()
        if not health.alive:
            raise ApiError(503, "The engine does not run.", "server_error", "engine_dead")
        try:
            target = self.service.models.resolve(model, adapter, partial(may_use, tenant))
        except (UnknownModel, UnknownAdapter) as error:
            raise unknown_model(self.service, tenant, model, adapter) from error
        if not health.loaded:
            message = "The model is still loading."
            raise ApiError(503, message, "server_error", "not_ready", None, 2.0)
        found = target.served.name
        note_model(model, found if target.adapter is None else f"{found}:{target.adapter}")
        names = target.served.config.drafts
        if isinstance(draft, str) and draft not in names:
            raise unknown_draft(target.served, draft, names, NO_DRAFTS)
        return target

    async def loaded(self, request: Request, served: Served, use: Use) -> LoadedModel:
        """The model, as soon as it is there; the client may hang up while it is being loaded.

        Raises ApiError 503 with the reason where it cannot be loaded.
        """
        try:
            if use.ready:
                return await use.wait()
            return await while_connected(request.receive, use.wait())
        except ClientGone as error:
            served.metrics.client_disconnect()
            raise ApiError(CLIENT_CLOSED, "The client went away.") from error
        except (ModelFailed, EngineDead) as error:
            raise not_loaded(self.service, served, error) from error

    def variant(self, model: LoadedModel, target: Target, draft: str | UnsetType | None) -> Variant:
        """The adapter and the draft that are meant, the draft by default the model's own.

        Raises ApiError 404.
        """
        names, off = model.info.drafts
        if isinstance(draft, UnsetType):
            draft = names[0] if names else None
        if draft is None or draft in names:
            return Variant(target.adapter, draft)
        raise unknown_draft(target.served, draft, names, off or NO_DRAFTS)

    def stable(self, served: Served) -> Stable:
        """What makes the prompts for a model alike where they differ without meaning."""
        return Stable(self.service.config.normalise_prompts, served.metrics)

    async def whole(
        self,
        request: Request,
        generation: Generation,
        prompts: Sequence[Prompt],
        frame: Frame,
        shape: Shape,
    ) -> Response:
        """The whole response in the OpenAI shape, unless the client hangs up before."""

        def body(replies: list[list[Piece]], usage: Usage) -> dict[str, Any]:
            shaped = zip(generation.choices, replies, strict=True)
            return frame.body([shape(choice, pieces) for choice, pieces in shaped], usage)

        return await self.completed(request, generation, prompts, body)

    async def completed(
        self, request: Request, generation: Generation, prompts: Sequence[Prompt], body: Body
    ) -> Response:
        """What ``body`` makes of all replies, unless the client hangs up before."""
        try:
            pieces = await while_connected(request.receive, complete(generation))
        except ClientGone:
            generation.metrics.client_disconnect()
            return Response(status_code=CLIENT_CLOSED)
        finally:
            generation.abort()
        told = body(pieces, generation.usage(prompts))
        return Response(encode(told), media_type="application/json")

    def stream(
        self,
        generation: Generation,
        prompts: Sequence[Prompt],
        writer: Writer,
        *,
        usage: bool,
        manner: Manner = OPENAI,
    ) -> Response:
        """The response as a stream of events."""
        return _Streaming(generation, prompts, writer, usage, manner)


class _Streaming(Response):
    def __init__(
        self,
        generation: Generation,
        prompts: Sequence[Prompt],
        writer: Writer,
        wants_usage: bool,
        manner: Manner,
    ) -> None:
        super().__init__()
        self._generation = generation
        self._prompts = prompts
        self._writer = writer
        self._wants_usage = wants_usage
        self._manner = manner
        self._failures: list[ApiError] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._run(scope, receive, send)
        except ClientGone:
            self._generation.metrics.client_disconnect()
        finally:
            self._generation.abort()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = EventStream(receive, send, self._manner.keep_alive)
        try:
            choices = self._generation.choices
            producers = [_Producer(self._writer, c, self._failed).run for c in choices]
            await stream.run(producers, self._end)
        except ApiError as error:
            if not stream.started:
                await error_answer(scope, error)(scope, receive, send)
                return
            scope[ERROR] = error
            await stream.finish(self._manner.failed(error, scope.get(REQUEST_ID, "")))

    def _failed(self, error: ApiError) -> None:
        """Ends the other choices, too; what they have until then is told before the error."""
        self._failures.append(error)
        self._generation.abort()

    def _end(self) -> bytes:
        if self._failures:
            raise self._failures[0]
        usage = b""
        if self._wants_usage:
            usage = self._writer.usage(self._generation.usage(self._prompts))
        return usage + self._manner.done


class _Producer:
    def __init__(self, writer: Writer, choice: Choice, failed: Callable[[ApiError], None]) -> None:
        self._writer = writer
        self._choice = choice
        self._failed = failed

    async def run(self, emit: Emit) -> None:
        """Emits the events of one choice; what is ready together is sent together."""
        try:
            await self._told(emit)
        except ApiError as error:
            self._failed(error)

    async def _told(self, emit: Emit) -> None:
        writer, choice = self._writer, self._choice
        pending = writer.first(choice)
        async for piece in choice.pieces():
            data = writer.piece(choice, piece)
            if choice.finish_reason:
                pending += data
            elif data:
                await emit(pending + data)
                pending = b""
        await emit(pending + writer.last(choice))
