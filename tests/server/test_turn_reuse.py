"""Ten turns of the shapes that agents' clients send: what each turn's prompt costs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest

from tests.clients import claude_code
from tests.clients.thinking import thinking_dir
from tests.clients.turns import Turn, claude_code_turns, opencode_turns

from .process import PATIENCE, Server
from .support import scrape

TURNS = 10
LEAST = 0.95


@pytest.fixture(scope="module", params=["qwen3", "qwen3_next"])
def http(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A server of a model with plain layers, and of one with recurrent ones."""
    path = str(thinking_dir(request.param))
    with (
        Server("--model", path, "--served-model-name", "m") as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as client,
    ):
        yield client


def check(turns: list[Turn]) -> None:
    assert len(turns) == TURNS
    assert all(turn.reused >= LEAST for turn in turns[1:]), turns
    assert all(before.prompt < after.prompt for before, after in pairwise(turns))


def test_claude_code_that_thinks(http: httpx.Client) -> None:
    before = scrape(http)("prompt_normalised_total", kind="billing_header")
    check(claude_code_turns(http, "m", TURNS))
    metrics = scrape(http)
    assert metrics("prompt_normalised_total", kind="billing_header") == before + TURNS


def test_claude_code_without_thinking(http: httpx.Client) -> None:
    # Its prompts end in an empty thought, which is in no later prompt.
    check(claude_code_turns(http, "m", TURNS, agent=1, thinking={"type": "disabled"}))


def test_opencode(http: httpx.Client) -> None:
    before = scrape(http)("prompt_normalised_total", kind="tool_schema")
    check(opencode_turns(http, "m", TURNS))
    assert scrape(http)("prompt_normalised_total", kind="tool_schema") == before + TURNS


def test_another_agent_shares_what_the_first_one_computed(http: httpx.Client) -> None:
    claude_code_turns(http, "m", 1, agent=2)
    (turn,) = claude_code_turns(http, "m", 1, agent=3)
    assert turn.reused >= LEAST


def test_count_tokens_is_what_the_conversation_uses(http: httpx.Client) -> None:
    body = claude_code.ClaudeCode("m", agent=4).body()
    (turn,) = claude_code_turns(http, "m", 1, agent=4)
    counted = http.post("/v1/messages/count_tokens?beta=true", json=body).json()
    assert counted == {"input_tokens": turn.prompt}


def test_without_normalising_nothing_is_shared() -> None:
    path = str(thinking_dir("qwen3"))
    with (
        Server("--model", path, "--served-model-name", "m", "--no-normalise-prompts") as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as http,
    ):
        turns = claude_code_turns(http, "m", 2, tools=claude_code.tools()[:4])
        assert turns[1].reused < 0.05
        assert scrape(http)("prompt_normalised_total") == 0
