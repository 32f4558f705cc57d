"""``/v1/responses`` of a real server through OpenAI's own client, sync and async."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from openai.types.responses import Response

from .responses import ROUTE, checked, parsed
from .support import MODEL, idle, poll, scrape, words

LONG = 1800  # tokens: long enough that a reply is still running when it is cancelled


def ask(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": prompt, "max_output_tokens": 8, "temperature": 0} | more


def endless(seed: int) -> dict[str, Any]:
    return ask(words(3, seed), max_output_tokens=LONG) | {"extra_body": {"ignore_eos": True}}


def ending(client: OpenAI, text: str) -> dict[str, Any]:
    """A request whose reply ends by itself, within eight tokens."""
    reply = client.responses.create(**ask(text)).output_text
    stop = next(letter for letter in reply if letter != reply[0])
    return ask(text) | {"extra_body": {"stop": stop}}


def test_whole_and_streamed_agree(client: OpenAI) -> None:
    body = ending(client, "hello there")
    whole = client.responses.create(**body)
    assert whole.status == "completed"
    with client.responses.stream(**body) as stream:
        streamed = stream.get_final_response()
    assert whole.output_text == streamed.output_text != ""
    assert whole.usage is not None and streamed.usage is not None
    assert whole.usage.output_tokens == streamed.usage.output_tokens <= 8
    # The second one borrows what the first has computed: all but the prompt's last token.
    cached = streamed.usage.input_tokens_details.cached_tokens
    assert cached == streamed.usage.input_tokens - 1


def test_raw_bodies_pass_strict_validation(http: httpx.Client) -> None:
    body = ask("good day", include=["message.output_text.logprobs"], top_logprobs=2)
    response = checked(http.post(ROUTE, json=body).raise_for_status().json())
    events = parsed(http.post(ROUTE, json=body | {"stream": True}).raise_for_status().text)
    for output in (response["output"], events[-1]["response"]["output"]):
        logprobs = output[0]["content"][0]["logprobs"]
        assert logprobs
        assert all(len(entry["top_logprobs"]) == 2 for entry in logprobs)


def test_text_by_a_schema(client: OpenAI) -> None:
    fields = {"type": "string", "enum": ["red", "green", "blue"]}
    schema = {
        "type": "object",
        "properties": {"colour": fields},
        "required": ["colour"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "colours", "schema": schema, "strict": True}
    body = ask("pick one", text={"format": form}, max_output_tokens=100)
    response = client.responses.create(**body)
    assert response.status == "completed"
    assert json.loads(response.output_text)["colour"] in fields["enum"]
    checked(response.model_dump(by_alias=True, exclude_unset=True))


def test_stored_continued_and_deleted(client: OpenAI) -> None:
    first = client.responses.create(**ask(words(40, 1)))
    second = client.responses.create(**ask("and then", previous_response_id=first.id))
    assert first.usage is not None and second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    assert [item.type for item in items] == ["message"] * 3
    client.responses.delete(first.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(first.id)


def test_cancelled_while_it_is_streamed(client: OpenAI, http: httpx.Client) -> None:
    with client.responses.create(**endless(2), stream=True) as stream:
        name, cancelled = "", None
        for event in stream:
            if event.type == "response.created":
                name = event.response.id
                assert client.responses.retrieve(name).status == "in_progress"
                cancelled = client.responses.cancel(name)
    assert event.type == "response.incomplete"
    assert event.response.status == "cancelled"
    assert cancelled is not None and cancelled == event.response
    assert client.responses.retrieve(name) == cancelled
    poll(http, idle)


def test_hanging_up_ends_it(client: OpenAI, http: httpx.Client) -> None:
    before = scrape(http)("client_disconnects_total")
    with client.responses.create(**endless(3), stream=True) as stream:
        name = next(iter(stream)).response.id  # type: ignore[union-attr]
    poll(http, lambda m: idle(m) and m("client_disconnects_total") == before + 1)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(name)


@pytest.mark.anyio
async def test_async(client: OpenAI, aclient: AsyncOpenAI) -> None:
    body = ending(client, "hello there")
    whole = await aclient.responses.create(**body)
    async with aclient.responses.stream(**body) as stream:
        streamed = await stream.get_final_response()
    assert isinstance(whole, Response)
    assert whole.output_text == streamed.output_text


def test_websockets_are_led_to_http(http: httpx.Client) -> None:
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert http.get(ROUTE, headers=upgrade).status_code == 405
