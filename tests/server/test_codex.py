"""A conversation of Codex's shape: the prefix of every turn is the whole turn before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx
import pytest

from engine import embedded
from tests.clients import codex
from tests.models import make

from .process import PATIENCE, Server
from .responses import ROUTE, parsed

TURNS = 10
MODEL = "agent"
SMALL = {"num_hidden_layers": 2, "vocab_size": 4096}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A random model behind a tokenizer and a template that know tools and thoughts."""
    path = make("qwen3", tmp_path_factory.mktemp("models") / MODEL, **SMALL)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded.path() / file, path)
    with (
        Server("--model", str(path)) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as http,
    ):
        yield http


def test_ten_turns_reuse_what_came_before(agent: httpx.Client) -> None:
    items = codex.opening("Find out why the test fails.")
    for turn in range(TURNS):
        answer = agent.post(ROUTE, json=codex.body(MODEL, items, max_output_tokens=8))
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
