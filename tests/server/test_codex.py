"""A conversation of Codex's shape: the prefix of every turn is the whole turn before."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.clients import codex
from tests.clients.thinking import thinking_dir

from .process import PATIENCE, Server
from .responses import ROUTE, parsed

TURNS = 10
MODEL = "m"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        Server("--model", str(thinking_dir("qwen3")), "--served-model-name", MODEL) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as client,
    ):
        yield client


def test_ten_turns_reuse_what_came_before(http: httpx.Client) -> None:
    items = codex.opening("Find out why the test fails.")
    for turn in range(TURNS):
        answer = http.post(ROUTE, json=codex.body(MODEL, items, max_output_tokens=8))
        assert answer.status_code == 200, answer.text
        response = parsed(answer.text)[-1]["response"]
        prompt = response["usage"]["input_tokens"]
        cached = response["usage"]["input_tokens_details"]["cached_tokens"]
        if turn:
            assert cached >= 0.95 * prompt, (turn, prompt, cached)
        items += [codex.kept(item) for item in response["output"]]
        items += codex.calls(turn) if turn % 3 else [codex.message("user", codex.prose(5, turn))]
        if turn == 4:
            items.append(codex.message("developer", "Approvals: never."))
