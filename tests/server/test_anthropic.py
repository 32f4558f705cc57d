"""The official anthropic SDK against a real server: every route, streaming and not, sync and
async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message, MessageParam

from .process import Server
from .support import CONTEXT, MODEL, words

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_sdk(server: Server) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def said(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_of(message: Message) -> int:
    usage = message.usage
    assert usage.cache_read_input_tokens is not None
    assert usage.cache_creation_input_tokens is not None
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}, "max_tokens": 12, "model": MODEL}


def test_message_stream_and_count_agree(sdk: Anthropic) -> None:
    messages = said(words(60, seed=501))
    # Among themselves: other tests' prompts begin alike.
    alone = GREEDY | {"extra_body": {"temperature": 0, "cache_salt": "counted"}}
    counted = sdk.messages.count_tokens(model=MODEL, messages=messages, system="Be kind.")
    whole = sdk.messages.create(messages=messages, system="Be kind.", **alone)
    assert whole.usage.cache_read_input_tokens == 0
    assert prompt_of(whole) == counted.input_tokens
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 12
    with sdk.messages.stream(messages=messages, system="Be kind.", **alone) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_message()
    assert seen[0] == "message_start"
    assert seen[-2:] == ["message_delta", "message_stop"]
    assert text_of(final) == text_of(whole) != ""
    assert prompt_of(final) == counted.input_tokens
    # All but what follows the last boundary of the cache.
    assert final.usage.cache_read_input_tokens == counted.input_tokens - 1
    assert final.usage.input_tokens == 1


async def test_async(async_sdk: AsyncAnthropic) -> None:
    messages = said(words(20, seed=502))
    whole = await async_sdk.messages.create(messages=messages, **GREEDY)
    async with async_sdk.messages.stream(messages=messages, **GREEDY) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    counted = await async_sdk.messages.count_tokens(model=MODEL, messages=messages)
    assert text == text_of(whole)
    assert counted.input_tokens == prompt_of(whole)
    assert [model.id async for model in await async_sdk.models.list()] == [MODEL]


def test_beta_route(sdk: Anthropic) -> None:
    message = sdk.beta.messages.create(
        messages=[{"role": "user", "content": "go"}],
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        max_tokens=2,
        model=MODEL,
    )
    assert message.content[0].type == "text"


def test_models(sdk: Anthropic) -> None:
    (model,) = sdk.models.list(limit=1000)
    assert (model.id, model.type, model.display_name) == (MODEL, "model", MODEL)
    assert model.max_input_tokens == CONTEXT
    assert sdk.models.retrieve(MODEL) == model
    with pytest.raises(anthropic.NotFoundError) as caught:
        sdk.models.retrieve("x")
    assert caught.value.request_id


def test_errors(sdk: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.create(messages=said("go"), max_tokens=2, model="x")
    with pytest.raises(anthropic.BadRequestError, match=r"messages: messages is empty"):
        sdk.messages.create(messages=[], max_tokens=2, model=MODEL)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+"):
        sdk.messages.create(messages=said(words(CONTEXT, 503)), max_tokens=2, model=MODEL)


def test_context_that_is_used_up(sdk: Anthropic) -> None:
    messages = said(words(380, 504))
    prompt = sdk.messages.count_tokens(model=MODEL, messages=messages).input_tokens
    assert CONTEXT - 500 < prompt < CONTEXT
    with sdk.messages.stream(
        messages=messages, max_tokens=32000, model=MODEL, extra_body={"ignore_eos": True}
    ) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "model_context_window_exceeded"
    assert prompt + message.usage.output_tokens == CONTEXT
