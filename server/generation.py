"""From prompts to replies: requests to the engine, their streams, and what they cost.

On the event loop; knows no wire format.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import anyio
from starlette.requests import Request as HttpRequest

from engine.params import SamplingParams
from engine.steering import Constraint
from engine.tokenizer import Prompt
from engine.variant import Variant
from scheduler.events import Finished, Token
from scheduler.limits import OverLimit
from scheduler.metrics import ModelMetrics
from scheduler.request import Request
from scheduler.served import Served
from scheduler.service import Service
from scheduler.streams import (
    EngineDead,
    ModelFailed,
    QueueFull,
    RequestStream,
    Reservation,
    Unfit,
    UnknownAdapter,
)

from .caller import Caller
from .compiling import Compiling
from .errors import ApiError, bad_request
from .output import Delta, Output
from .rate_limits import estimated_tokens, metered, over_limit
from .request_log import Tally, note_replies, request_id

T = TypeVar("T")
RETRY_AFTER = 1.0  # seconds; a place is free again within a reply or so
FAILURES = ("error", "abort")  # reasons to finish that leave no whole reply
DRAINED_AFTER = 5.0  # seconds; by then another process may have taken over


class Piece(NamedTuple):
    """What came at once: parsed text, and the tokens that made it."""

    delta: Delta
    tokens: list[Token]


class Usage(NamedTuple):
    """Token counts of a whole response; prompt less cached is what the model's input saw.

    ``reasoning`` is the part of ``completion`` that is inside thoughts.
    """

    prompt: int
    cached: int
    completion: int
    reasoning: int = 0


class Choice:
    """One reply: a stream of engine events turned into pieces."""

    def __init__(self, index: int, stream: RequestStream, output: Output, service: Service) -> None:
        self.index = index
        self.finish_reason = ""
        self.output = output
        self.finished: Finished | None = None
        self.first_token: float | None = None  # by time.perf_counter
        self._stream = stream
        self._service = service
        self._seen = 0

    @property
    def id(self) -> str:
        """The engine's name for the request."""
        return self._stream.request.id

    @property
    def completion_tokens(self) -> int:
        """Tokens generated for the client so far; not those that came after a stop string."""
        if self.finished is None or self.output.over():
            return self._seen
        return max(self._seen, self.finished.completion_tokens)  # a failure counts none

    @property
    def end(self) -> str:
        """Why it ended, whether or not the client could be told."""
        return self.finish_reason or ("" if self.finished is None else self.finished.reason)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The reply as it comes; ``finish_reason`` holds at its end.

        Raises ApiError, after all that came before the failure.
        """
        async for events in self._stream:
            tokens = [e for e in events if isinstance(e, Token)]
            if tokens and self.first_token is None:
                self.first_token = time.perf_counter()
            parsed = self._parse(tokens)
            last = events[-1]
            if isinstance(last, Finished):
                self.finished = last
                parsed += self._end(last)
            for piece in _joined(parsed):
                if piece.delta or piece.tokens:
                    yield piece
        self._check()

    def abort(self) -> None:
        """Ends the request in the engine, if it still runs."""
        if self.finished is None:
            self._service.abort(self.id)

    def _parse(self, tokens: list[Token]) -> list[Piece]:
        """What each token adds."""
        if self.output.over():
            return []
        parsed: list[Piece] = []
        for token in tokens:
            parsed.append(Piece(self.output.add(token.token), [token]))
            if self.output.over():
                self._service.abort(self.id, "stop")
                break
        self._seen += len(parsed)
        return parsed

    def _end(self, finished: Finished) -> list[Piece]:
        rest = [] if self.output.over() else [Piece(self.output.finish(), [])]
        reason = "stop" if self.output.over() else finished.reason
        if reason not in FAILURES:
            called = reason == "stop" and self.output.called
            self.finish_reason = "tool_calls" if called else reason
        return rest

    def _check(self) -> None:
        """Raises ApiError where the reply was broken off."""
        if self.finished is not None and not self.finish_reason:
            message = self.finished.message or "The request was aborted."
            raise ApiError(503, message, "server_error", "engine_error")


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of a kind as one; others stay apart, so that they keep their order."""
    groups: list[list[Piece]] = []
    last: tuple[bool, ...] | None = None
    for piece in pieces:
        kinds = piece.delta.kinds if piece.delta else last  # what shows nothing goes anywhere
        if not groups or (last is not None and kinds != last):
            groups.append([])
        groups[-1].append(piece)
        last = kinds
    return [
        Piece(Delta.joined([p.delta for p in group]), [t for p in group for t in p.tokens])
        for group in groups
    ]


class Generation:
    """All replies of one response, which is called ``name``; ``metrics`` are their model's."""

    def __init__(
        self, name: str, choices: Sequence[Choice], metrics: ModelMetrics, prompt_tokens: int
    ) -> None:
        self.name = name
        self.choices = choices
        self.metrics = metrics
        self._prompt_tokens = prompt_tokens

    def abort(self) -> None:
        """Ends what still runs."""
        for choice in self.choices:
            choice.abort()

    def usage(self, prompts: Sequence[Prompt]) -> Usage:
        """What all replies cost; a prompt counts once however many replies it gets."""
        return self._usage(sum(len(p.tokens) for p in prompts))

    def tally(self) -> Tally:
        """The same for the log, also while replies are being written."""
        usage = self._usage(self._prompt_tokens)
        first = [c.first_token for c in self.choices if c.first_token is not None]
        return Tally(
            response_id=self.name,
            prompt=usage.prompt,
            cached=usage.cached if all(c.finished is not None for c in self.choices) else None,
            completion=usage.completion,
            reasoning=usage.reasoning,
            first_token=min(first, default=None),
            finish_reasons=tuple(sorted({c.end for c in self.choices if c.end})),
        )

    def _usage(self, prompt: int) -> Usage:
        ends = [c.finished for c in self.choices if c.finished is not None]
        computed = sum(e.prompt_tokens - e.cached_tokens for e in ends)
        completion = sum(c.completion_tokens for c in self.choices)
        reasoning = sum(c.output.reasoning for c in self.choices)
        return Usage(prompt, max(0, prompt - computed), completion, reasoning)


class Plan(NamedTuple):
    """How each of some prompts is to be answered.

    ``thinking_budget`` bounds the tokens of thoughts, ``constraint`` is for the answer.
    """

    prompt: Prompt
    max_tokens: int
    sampling: SamplingParams
    stop_ids: frozenset[int]
    output: Callable[[], Output]
    variant: Variant
    thinking_budget: int | None = None
    constraint: Constraint | None = None

    def bounded(self) -> Constraint | None:
        """The constraint, with the budget in it."""
        thoughts = self.prompt.thoughts
        if self.thinking_budget is None or thoughts is None:
            return self.constraint
        found = self.constraint or Constraint(thoughts=thoughts)
        return found._replace(budget=self.thinking_budget)


def reserve(
    service: Service, request: HttpRequest, served: Served, places: int, copies: int
) -> Reservation:
    """Places in the queue, for ``copies`` replies to each prompt. Raises ApiError 429, 503."""
    tenant, estimated = metered(request), copies * estimated_tokens(request)
    try:
        return service.reserve(places, tenant, estimated)
    except OverLimit as error:
        served.metrics.rejection(f"tenant_{error.limit}")
        raise over_limit(error) from error
    except QueueFull as error:
        served.metrics.rejection("queue_full")
        message = "The server is busy: its queue is full. Try again."
        raise ApiError(503, message, "server_error", "queue_full", None, RETRY_AFTER) from error
    except EngineDead as error:
        raise _stopped(service, served) from error


def _stopped(service: Service, served: Served) -> ApiError:
    """The error for a request that came too late, which is counted."""
    if service.health().draining:
        served.metrics.rejection("draining")
        message = "The server is shutting down."
        return ApiError(503, message, "server_error", "not_ready", None, DRAINED_AFTER)
    served.metrics.rejection("engine_dead")
    return ApiError(503, "The engine does not run.", "server_error", "engine_dead")


def not_loaded(service: Service, served: Served, error: ModelFailed | EngineDead) -> ApiError:
    """The error for a request whose model did not come into memory, which is counted."""
    if isinstance(error, EngineDead):
        return _stopped(service, served)
    served.metrics.rejection("model_failed")
    message = f"The model {served.name!r} cannot be loaded: {error}."
    return ApiError(503, message, "server_error", "model_failed", None, error.retry_after)


def submit(
    service: Service,
    served: Served,
    places: Reservation,
    plans: Sequence[Plan],
    copies: int,
    name: str,
    caller: Caller,
) -> Generation:
    """Starts ``copies`` replies to each plan. Raises ApiError, and then none runs."""
    choices: list[Choice] = []
    metrics = served.metrics
    prompt_tokens = sum(len(plan.prompt.tokens) for plan in plans)
    generation = Generation(name, choices, metrics, prompt_tokens)
    note_replies(generation)
    try:
        for plan in plans:
            for copy in range(copies):
                index = len(choices)
                stream = places.submit(_request(served, plan, f"{name}-{index}", copy, caller))
                choices.append(Choice(index, stream, plan.output(), service))
            metrics.asked(copies)
    except Unfit as error:
        generation.abort()
        metrics.rejection("prompt_too_large")
        raise bad_request(str(error), code="context_length_exceeded") from error
    except UnknownAdapter as error:
        generation.abort()
        message = f"The adapter {str(error)!r} has just been unloaded."
        raise ApiError(404, message, code="model_not_found", param="model") from error
    except EngineDead as error:
        generation.abort()
        raise _stopped(service, served) from error
    return generation


def _request(served: Served, plan: Plan, name: str, copy: int, caller: Caller) -> Request:
    sampling = plan.sampling
    if sampling.seed is not None and copy:
        sampling = replace(sampling, seed=sampling.seed + copy)
    return Request(
        id=name,
        prompt=plan.prompt.tokens,
        max_tokens=plan.max_tokens,
        sampling=sampling,
        stop_token_ids=plan.stop_ids,
        boundaries=plan.prompt.boundaries,
        variant=plan.variant,
        model=served.name,
        tenant=caller.tenant,
        agent=caller.agent,
        domain=caller.domain,
        priority=caller.priority,
        constraint=plan.bounded(),
        origin=request_id(),
    )


class TextThreads:
    """Where prompts are rendered and tokenised: few, so that the engine's thread is not starved."""

    def __init__(self, threads: int = 2) -> None:
        self.compiling = Compiling()
        self._threads = threads
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, from a worker thread."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._threads)
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)


async def complete(generation: Generation) -> list[list[Piece]]:
    """All pieces of all replies, by choice."""

    async def whole(choice: Choice) -> list[Piece]:
        return [piece async for piece in choice.pieces()]

    return list(await asyncio.gather(*(whole(c) for c in generation.choices)))
