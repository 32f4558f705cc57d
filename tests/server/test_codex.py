"""A conversation of Codex's shape: the prefix of every turn is the whole turn before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine import embedded
from tests.clients import codex
from tests.models import make

from .process import PATIENCE, Server
from .responses import ROUTE, parsed

TURNS = 10
MODEL = "agent"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A random model behind a template that knows tools and thoughts."""
    path = make("qwen3", tmp_path_factory.mktemp("models") / MODEL, num_hidden_layers=2)
    config = path / "tokenizer_config.json"
    told = json.loads(config.read_text())
    told["chat_template"] = (Path(embedded.path()) / "chat_template.jinja").read_text()
    config.write_text(json.dumps(told))
    with (
        Server("--model", str(path)) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as http,
    ):
        yield http


def test_ten_turns_reuse_what_came_before(agent: httpx.Client) -> None:
    items, before = codex.opening("Find out why the test fails."), 0
    for turn in range(TURNS):
        answer = agent.post(ROUTE, json=codex.body(MODEL, items, max_output_tokens=8))
        assert answer.status_code == 200, answer.text
        response = parsed(answer.text)[-1]["response"]
        prompt = response["usage"]["input_tokens"]
        cached = response["usage"]["input_tokens_details"]["cached_tokens"]
        if turn:
            assert cached >= max(before, 0.95 * prompt), (turn, before, prompt, cached)
        before = prompt
        items += [codex.kept(item) for item in response["output"]]
        items += codex.calls(turn) if turn % 3 else [codex.message("user", codex.prose(5, turn))]
        if turn == 4:
            items.append(codex.message("developer", "Approvals: never."))
