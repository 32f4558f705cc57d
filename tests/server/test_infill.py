"""What stands between two texts, and prompts that are echoed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from mlx_lm.utils import load_tokenizer
from openai import AsyncOpenAI
from openai.types import Completion

from engine import embedded
from engine.infill import MARKS
from engine.tokenizer import Tokenizer

from .scripted import EOS, Scripted, wired
from .support import chunks

pytestmark = pytest.mark.anyio

ROUTE = "/v1/completions"


def marked(marks: tuple[str, str, str]) -> Tokenizer:
    """The embedded tokenizer with three more tokens."""
    wrapper = load_tokenizer(embedded.path())
    wrapper._tokenizer.add_tokens(list(marks), special_tokens=True)
    return Tokenizer(wrapper)


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app) as client:
        yield client


def use(service: Scripted, tokenizer: Tokenizer) -> None:
    facts = service.models.main.facts
    assert facts is not None
    service.models.main.facts = facts._replace(tokenizer=tokenizer)


@pytest.mark.parametrize("marks", MARKS)
async def test_texts_stand_between_the_marks(
    http: httpx.AsyncClient, service: Scripted, marks: tuple[str, str, str]
) -> None:
    tokenizer = marked(marks)
    use(service, tokenizer)
    service.says = "ok"
    ids = [tokenizer.encode(mark)[0] for mark in marks]
    before, after = tokenizer.encode("def f("), tokenizer.encode("\n    return x")
    expected = (ids[0], *before, ids[1], *after, ids[2])
    for prompt in ("def f(", list(before)):
        body = {"model": "m", "prompt": prompt, "suffix": "\n    return x", "echo": True}
        response = await http.post(ROUTE, json=body)
        assert response.json()["choices"][0]["text"] == "def f(ok"
        assert service.requests[-1].prompt[-len(expected) :] == expected
        assert service.requests[-1].stop_token_ids == {EOS, *ids}


async def test_model_without_marks_refuses_a_suffix(
    http: httpx.AsyncClient, service: Scripted
) -> None:
    service.says = "ok"
    body = {"model": "m", "prompt": "a", "suffix": "b"}
    error = (await http.post(ROUTE, json=body)).json()["error"]
    assert (error["param"], error["code"]) == ("suffix", "unsupported")
    response = await http.post(ROUTE, json=body | {"suffix": ""})
    assert response.json()["choices"][0]["text"] == "ok"


async def test_stops_of_an_editor(http: httpx.AsyncClient, service: Scripted) -> None:
    """As Continue completes code: its model's marks, and what begins the next thing in a file."""
    words = ("function", "class", "module", "export", "import", "interface", "type", "const")
    marks = ("prefix", "middle", "suffix", "pad")
    stops = [f"\n{word}" for word in words] + [f"<|fim_{mark}|>" for mark in marks]
    stops += ["/src/", "#- coding: utf-8", "```", "<|endoftext|>", "<|file_sep|>", "\n\n"]
    service.says = "return x\nfunction g"
    body = {"model": "m", "prompt": "<|fim_prefix|>f(<|fim_suffix|>)<|fim_middle|>", "stop": stops}
    (choice,) = (await http.post(ROUTE, json=body)).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("return x", "stop")


@pytest.mark.parametrize("prompt", ["a b", ["a b", "c"], [[70, 71], [72]]])
async def test_echo(http: httpx.AsyncClient, service: Scripted, prompt: Any) -> None:
    service.says = " ok"
    prompts = prompt if isinstance(prompt, list) else [prompt]
    texts = [p if isinstance(p, str) else service.tokenizer.text_of(p) for p in prompts]
    expected = [text + " ok" for text in texts for _ in range(2)]
    body = {"model": "m", "prompt": prompt, "echo": True, "n": 2}
    whole = await http.post(ROUTE, json=body)
    Completion.model_validate_json(whole.content)
    assert [c["text"] for c in whole.json()["choices"]] == expected
    found = [""] * len(expected)
    response = await http.post(ROUTE, json=body | {"stream": True})
    for part in chunks(response.text.splitlines()):
        for choice in part["choices"]:
            found[choice["index"]] += choice["text"]
    assert found == expected


async def test_echo_by_the_sdk(aclient: AsyncOpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny-qwen3", "prompt": "hello", "max_tokens": 3, "echo": True}
    whole = await aclient.completions.create(**ask, temperature=0)
    stream = await aclient.completions.create(**ask, temperature=0, stream=True)
    assert "".join([p.choices[0].text async for p in stream]) == whole.choices[0].text
    assert whole.choices[0].text.startswith("hello")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 3
