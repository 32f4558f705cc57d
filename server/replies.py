"""What all dialects make alike of a checked request: its prompt, and how to answer that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from engine.grammar import Grammar
from engine.tokenizer import Message, Prompt, PromptError, Tokenizer
from engine.variant import Variant
from scheduler.live import LoadedModel

from .constraints import Wish, constraint
from .errors import bad_request
from .fields import GenerationFields
from .generation import Plan
from .output import Output
from .tool_choice import Tool


class Replies:
    """How prompts are to be continued. Raises ApiError where a field is out of range.

    ``ends`` are tokens that end a reply; ``logprobs`` is how many a token comes with, if any.
    """

    def __init__(
        self,
        model: LoadedModel,
        body: GenerationFields,
        variant: Variant,
        ends: frozenset[int],
        logprobs: int | None = None,
    ) -> None:
        info = model.info
        self._tokenizer = model.tokenizer
        self._variant = variant
        self._stops = body.stops()
        self._stop_ids = body.stop_ids(info.vocab_size, ends)
        self.sampling = body.sampling(info.defaults, info.vocab_size, logprobs)

    def plan(
        self, prompt: Prompt, most: int, grammar: Grammar | None, budget: int | None = None
    ) -> Plan:
        """With at most so many tokens, and so many of them inside thoughts."""
        return Plan(
            prompt,
            most,
            self.sampling,
            self._stop_ids,
            partial(self._output, prompt),
            self._variant,
            budget,
            constraint(grammar, self._tokenizer, prompt),
        )

    def _output(self, prompt: Prompt) -> Output:
        return Output(self._tokenizer.detokenizer(prompt.tokens), self._stops)


class ChatReplies(Replies):
    """How chats are to be answered: with thoughts, and with calls of the tools that are shown."""

    def __init__(
        self,
        model: LoadedModel,
        body: GenerationFields,
        variant: Variant,
        tools: Sequence[Tool],
        wish: Wish | None,
        *,
        one_call: bool,
        logprobs: int | None = None,
    ) -> None:
        ends = model.info.eos_token_ids | model.tokenizer.end_ids
        super().__init__(model, body, variant, ends, logprobs)
        self._tools = tools
        self._one_call = one_call
        self._incremental = body.stream is True
        self._formed = wish is not None

    def _output(self, prompt: Prompt) -> Output:
        return Output(
            self._tokenizer.detokenizer(),
            self._stops,
            self._tokenizer,
            thinking=prompt.thinking,
            tools=self._tools,
            one_call=self._one_call,
            incremental=self._incremental,
            formed=self._formed,
        )


def chat_prompt(
    tokenizer: Tokenizer,
    messages: list[Message],
    tools: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    domain: str,
    param: str,
) -> Prompt:
    """A chat as the model's template has it, in a trust domain; to run on a worker thread.

    Raises ApiError where there is no template, and for ``param`` where it refuses the messages.
    """
    if not tokenizer.has_chat_template:
        raise bad_request("This model has no chat template; use /v1/completions.", "model")
    try:
        return tokenizer.chat(messages, tools or None, options, domain)
    except PromptError as error:
        raise bad_request(str(error), param) from error
