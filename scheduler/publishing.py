"""A model's public prompts, computed while it is loaded. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from engine.loader import LoadError
from engine.pieces import Pieces
from engine.public import PublicError, publishing
from engine.start import Started
from engine.tokenizer import PromptError, Tokenizer
from engine.variant import Variant

from .info import PublicPrompt, ServiceConfig


def going_public(
    name: str,
    started: Started,
    tokenizer: Tokenizer,
    service: ServiceConfig,
    progress: Callable[[str], None],
) -> Pieces[None]:
    """Computes the prompts of the model ``name``, for what requests get unless they say otherwise.

    That is the prompt's adapter with the model's default draft. Raises LoadError.
    """
    prompts = [prompt for prompt in service.public if prompt.model == name]
    if prompts and not service.prefix_cache:
        raise LoadError("public prompts are kept in the prefix cache, which is switched off")
    for number, prompt in enumerate(prompts, 1):
        yield None
        progress(f"computing public prompt {number} of {len(prompts)}")
        tokens, boundaries = _rendered(prompt, tokenizer, started.loaded.max_context)
        variant = Variant(prompt.adapter, next(iter(started.drafts.names), None))
        try:
            yield from publishing(started.engine, tokens, boundaries, variant)
        except PublicError as error:
            raise LoadError(f"{error}: give more --kv-memory, or publish less") from error


def _rendered(
    prompt: PublicPrompt, tokenizer: Tokenizer, context: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Its tokens, and where other conversations with the same system prompt part from it."""
    messages = tuple(prompt.messages or ())
    leading = tuple(takewhile(lambda message: message.get("role") == "system", messages))
    if prompt.text is None and not tokenizer.has_chat_template:
        raise LoadError("the model has no chat template: a public prompt for it must be a text")
    try:
        tokens = tokenizer.beginning(prompt.text, messages, prompt.tools)
        system = tokenizer.beginning(None, leading, prompt.tools) if leading != messages else ()
    except PromptError as error:
        raise LoadError(f"a public prompt cannot be rendered: {error}") from error
    if not 0 < len(tokens) < context:
        raise LoadError(
            f"a public prompt of {len(tokens)} tokens cannot be lent: the context is {context}"
        )
    return tokens, (len(system),) if 0 < len(system) < len(tokens) else ()
