"""Between the routes and the engine: what a request becomes, and how refusals are answered."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from .scripted import DEFAULTS, EOS, GOOD, Scripted, wired

pytestmark = pytest.mark.anyio

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
DRAINING = GOOD._replace(ready=False, draining=True)
DEAD = GOOD._replace(alive=False, loaded=False, ready=False)
LOADING = GOOD._replace(loaded=False, ready=False)


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app, raises=False) as client:
        yield client


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "go"}]} | more


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    found: dict[str, Any] = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


def rejections(service: Scripted, reason: str) -> float:
    labels = {"model": "m", "adapter": "", "draft": "", "reason": reason}
    name = "commons_admission_rejections_total"
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_what_is_not_given_is_as_the_model_wants_it(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    await http.post(CHAT, json=chat())
    (request,) = service.requests
    assert request.sampling == DEFAULTS
    assert request.max_tokens == 100
    assert request.stop_token_ids == {EOS}


async def test_what_is_given_reaches_the_engine(http: httpx.AsyncClient, service: Scripted) -> None:
    more = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": -1,
        "min_p": 0.125,
        "seed": -7,
        "repetition_penalty": 1.5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"5": 2, "007": -3.5},
        "stop_token_ids": [9],
        "max_completion_tokens": 33,
        "logprobs": True,
        "top_logprobs": 4,
        "ignore_eos": True,
    }
    service.says = ""
    response = await http.post(CHAT, json=chat(**more))
    assert response.status_code == 200
    (request,) = service.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 0)
    assert (sampling.min_p, sampling.seed, sampling.repetition_penalty) == (0.125, -7, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == ((5, 2), (7, -3.5))
    assert sampling.logprobs == 4
    assert request.stop_token_ids == {9}
    assert request.max_tokens == 33


async def test_copies_have_seeds_and_names_of_their_own(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    await http.post(CHAT, json=chat(n=3, seed=5))
    assert [r.sampling.seed for r in service.requests] == [5, 6, 7]
    assert len({r.id for r in service.requests}) == 3
    assert len({r.prompt for r in service.requests}) == 1


async def test_prompt_that_never_fits(http: httpx.AsyncClient, service: Scripted) -> None:
    service.fits = 2
    for stream in (False, True):
        service.requests.clear()
        found = error(await http.post(CHAT, json=chat(n=4, stream=stream)), 400)
        assert found["code"] == "context_length_exceeded"
        assert service.outstanding == 0
    assert rejections(service, "prompt_too_large") == 2


@pytest.mark.parametrize(
    ("state", "code", "reason"),
    [(DRAINING, "not_ready", "draining"), (DEAD, "engine_dead", ""), (LOADING, "not_ready", "")],
)
async def test_server_that_takes_nothing(
    http: httpx.AsyncClient, service: Scripted, state: Any, code: str, reason: str
) -> None:
    service.state = state
    response = await http.post(CHAT, json=chat())
    assert error(response, 503)["code"] == code
    assert error(response, 503)["type"] == "server_error"
    assert ("retry-after" in response.headers) == (code == "not_ready")
    assert rejections(service, reason) == bool(reason)
    assert not service.requests


async def test_drain_that_begins_while_the_prompt_is_rendered(
    http: httpx.AsyncClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = service.tokenizer.encode

    def drains(*args: Any, **more: Any) -> Any:
        service.state = DRAINING
        return encode(*args, **more)

    monkeypatch.setattr(service.tokenizer, "encode", drains)
    response = await http.post(TEXT, json={"model": "m", "prompt": "go"})
    assert error(response, 503)["code"] == "not_ready"
    assert response.headers["retry-after"] == "5"
    assert rejections(service, "draining") == 1
    assert service.outstanding == 0


async def test_failure_before_the_first_token(http: httpx.AsyncClient, service: Scripted) -> None:
    service.fails_after = 0
    for stream in (False, True):
        found = error(await http.post(CHAT, json=chat(stream=stream)), 503)
        assert found["code"] == "engine_error"
        assert found["message"] == "The engine failed."


async def test_failure_in_the_middle_of_a_reply(http: httpx.AsyncClient, service: Scripted) -> None:
    service.says, service.fails_after = "one two three four", 2
    error(await http.post(CHAT, json=chat()), 503)


async def test_fault_shows_nothing_of_the_inside(
    http: httpx.AsyncClient,
    service: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(*args: Any) -> Any:
        raise RuntimeError("secret at 0xDEADBEEF")

    monkeypatch.setattr(service.tokenizer, "chat", breaks)
    with caplog.at_level(logging.ERROR, "commons.server"):
        response = await http.post(CHAT, json=chat(), headers={"x-request-id": "mine"})
    found = error(response, 500)
    assert (found["type"], found["code"]) == ("server_error", "internal_error")
    assert "0xDEADBEEF" not in json.dumps(found)
    assert response.headers["x-request-id"] == "mine"
    assert "0xDEADBEEF" in caplog.text
    assert service.outstanding == 0


async def test_model_without_a_template_has_no_chats(
    http: httpx.AsyncClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(service.tokenizer), "has_chat_template", False)
    assert "no chat template" in error(await http.post(CHAT, json=chat()), 400)["message"]


async def test_template_that_refuses(
    http: httpx.AsyncClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = service.tokenizer._wrapper
    monkeypatch.setattr(
        wrapper._tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}"
    )
    found = error(await http.post(CHAT, json=chat()), 400)
    assert found["param"] == "messages"
    assert "roles must alternate" in found["message"]
    assert service.outstanding == 0
