"""``/v1/completions``: the OpenAI text dialect, streaming and not."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.grammar import Grammar
from engine.tokenizer import Prompt, Tokenizer
from engine.variant import Variant
from scheduler.live import LoadedModel

from .body import Refused, read_json
from .caller import caller_of
from .constraints import compiled, wanted
from .dialect import Dialect, Frame
from .errors import bad_request
from .fields import (
    MOST_CHOICES,
    MOST_TOP_LOGPROBS,
    REFUSED_ALIKE,
    GenerationFields,
    Room,
    check_tokens,
)
from .generation import Choice, Piece, Plan, Usage, reserve, submit
from .logprobs import text_logprobs
from .output import Delta
from .replies import Replies
from .tool_choice import ToolChoice

DEFAULT_MAX_TOKENS = 16  # what OpenAI's text dialect gives where a request names none

REFUSED: Refused = REFUSED_ALIKE | {"prompt_embeds": ()}


class CompletionRequest(GenerationFields, kw_only=True):
    """The body of a text completion."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class Completions(Dialect):
    """Continues texts."""

    async def post(self, request: Request) -> Response:
        """The route."""
        body = await read_json(request, CompletionRequest, REFUSED)
        body.check()
        caller, service = caller_of(request.scope, body), self.service
        target = self.serves(caller.tenant, body.model, body.adapter, body.draft_model)
        texts = _prompts(body)
        served, needed = target.served, len(texts) * body.choices
        if needed > MOST_CHOICES:
            raise bad_request(f"At most {MOST_CHOICES} replies are possible.", "n")
        places = reserve(service, request, served, needed, body.choices)
        with places, service.use(served) as use:
            model = await self.loaded(request, served, use)
            variant = self.variant(model, target, body.draft_model)
            room = Room(model.info.max_model_len, DEFAULT_MAX_TOKENS, caller.tenant.limits)
            check = _Checked(model, body, variant, room)
            grammar = await compiled(
                self.threads, model, check.wanted, caller.tenant, served.metrics
            )
            prompts = await self.threads.run(
                lambda: [check.prompt(text, caller.domain) for text in texts]
            )
            plans = [check.plan(prompt, grammar) for prompt in prompts]
            name = f"cmpl-{uuid.uuid4().hex}"
            generation = submit(service, served, places, plans, body.choices, name, caller)
        frame = Frame(name, "text_completion", body.model, int(time.time()))
        wants = body.logprobs is not None
        echo = _Echo(model.tokenizer, texts, body.choices) if body.echo else None
        if body.stream:
            writer = _Chunks(model.tokenizer, frame, wants, echo)
            return self.stream(generation, prompts, writer, usage=body.wants_usage)
        shape = partial(_choice, model.tokenizer, wants, echo)
        return await self.whole(request, generation, prompts, frame, shape)


class _Checked:
    """A checked request; ``prompt`` is to run on a worker thread."""

    def __init__(
        self, model: LoadedModel, body: CompletionRequest, variant: Variant, room: Room
    ) -> None:
        self._info = model.info
        self._tokenizer = model.tokenizer
        self._body = body
        self._room = room
        logprobs = body.logprobs
        if logprobs is not None and not 0 <= logprobs <= MOST_TOP_LOGPROBS:
            raise bad_request(f"logprobs must be between 0 and {MOST_TOP_LOGPROBS}.", "logprobs")
        if logprobs is not None and body.echo:
            raise bad_request(
                "The log-probabilities of a prompt are not computed: echo goes without logprobs.",
                "echo",
                "unsupported",
            )
        if body.suffix and self._tokenizer.infill is None:
            raise bad_request(
                "This model cannot fill in: its vocabulary has no tokens for it.",
                "suffix",
                "unsupported",
            )
        ends = model.info.eos_token_ids
        if body.suffix:
            ends |= frozenset(self._tokenizer.infill or ())
        self._replies = Replies(model, body, variant, ends, logprobs)
        self.wanted = wanted(body.answer(), ToolChoice("none"), (), self._tokenizer)

    def prompt(self, text: str | list[int], domain: str) -> Prompt:
        """Tokenises, in a trust domain. Raises ApiError."""
        suffix = self._body.suffix
        if not isinstance(text, str):
            check_tokens("prompt", text, self._info.vocab_size)
        if suffix and (filled := self._tokenizer.between(text, suffix, domain)) is not None:
            return Prompt(filled, (), False)
        if isinstance(text, str):
            tokens = self._tokenizer.encode(text, special=True, domain=domain)
            return Prompt(tokens, (), False)
        return Prompt(tuple(text), (), False)

    def plan(self, prompt: Prompt, grammar: Grammar | None) -> Plan:
        """How the engine is to answer. Raises ApiError where the context does not last."""
        wanted = self._body.max_tokens
        most = self._room.reply(len(prompt.tokens), wanted, "max_tokens", "prompt")
        return self._replies.plan(prompt, most, grammar)


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts: a text, texts, token ids, or several lists of these."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request("The prompt is empty.", "prompt")
    if all(isinstance(p, int) for p in prompt):
        return [[p for p in prompt if isinstance(p, int)]]
    texts: list[str | list[int]] = [p for p in prompt if not isinstance(p, int)]
    if len(texts) < len(prompt) or len({type(p) for p in texts}) > 1:
        raise bad_request(
            "prompt is a list of texts, of token ids, or of lists of these.", "prompt"
        )
    return texts


class _Echo:
    """The prompts as text, each of which begins the text of its replies."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str | list[int]], copies: int) -> None:
        self._texts = [t if isinstance(t, str) else tokenizer.text_of(t) for t in texts]
        self._copies = copies

    def of(self, choice: Choice) -> str:
        return self._texts[choice.index // self._copies]


def _choice(
    tokenizer: Tokenizer, logprobs: bool, echo: _Echo | None, choice: Choice, pieces: list[Piece]
) -> dict[str, Any]:
    """A whole choice."""
    tokens = [t for p in pieces for t in p.tokens]
    text = Delta.joined([p.delta for p in pieces]).text
    return {
        "index": choice.index,
        "text": text if echo is None else echo.of(choice) + text,
        "logprobs": text_logprobs(tokenizer, tokens, 0)[0] if logprobs else None,
        "finish_reason": choice.finish_reason,
    }


class _Chunks:
    """The chunks of a streamed completion."""

    def __init__(
        self, tokenizer: Tokenizer, frame: Frame, logprobs: bool, echo: _Echo | None
    ) -> None:
        self._tokenizer = tokenizer
        self._echo = echo
        self._frame = frame
        self._logprobs = logprobs
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def first(self, choice: Choice) -> bytes:
        return b"" if self._echo is None else self._chunk(choice, self._echo.of(choice))

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        if not (piece.delta.text or self._logprobs):
            return b""
        logprobs = None
        if self._logprobs:
            offset = self._offsets[choice.index]
            logprobs, offset = text_logprobs(self._tokenizer, piece.tokens, offset)
            self._offsets[choice.index] = offset
        return self._chunk(choice, piece.delta.text, logprobs=logprobs)

    def last(self, choice: Choice) -> bytes:
        return self._chunk(choice, "", finish_reason=choice.finish_reason)

    def usage(self, usage: Usage) -> bytes:
        return self._frame.event([], usage)

    def _chunk(self, choice: Choice, text: str, **more: Any) -> bytes:
        shape = {"index": choice.index, "text": text, "logprobs": None, "finish_reason": None}
        return self._frame.event([shape | more])
