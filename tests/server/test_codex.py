"""Conversations of Codex's shape: what prompts share with the last turn, and between sessions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.clients import codex
from tests.clients.thinking import thinking_dir
from tests.clients.turns import Turn

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


def asked(http: httpx.Client, items: list[codex.Item], **more: Any) -> tuple[Any, Turn]:
    """The response to a conversation, and what its prompt cost."""
    body = codex.body(MODEL, items, max_output_tokens=8, **more)
    answer = http.post(ROUTE, json=body)
    assert answer.status_code == 200, answer.text
    response = parsed(answer.text)[-1]["response"]
    usage = response["usage"]
    return response, Turn(usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("as_item", [False, True])
def test_sessions_in_different_folders_share_instructions_and_tools(
    http: httpx.Client, as_item: bool
) -> None:
    """The template puts the tools behind the system message."""
    shared: dict[str, Any] = {"cache_salt": f"folders {as_item}", "as_item": as_item}
    asked(http, codex.opening("Find out why the test fails.", "/src/one"), **shared)
    for folder in ("/home/two/src", "/tmp/three"):
        _, turn = asked(http, codex.opening("Add a test.", folder), **shared)
        assert turn.reused >= 0.8, (folder, turn)


def test_ten_turns_reuse_what_came_before(http: httpx.Client) -> None:
    items = codex.opening("Find out why the test fails.")
    for number in range(TURNS):
        response, turn = asked(http, items)
        if number:
            assert turn.reused >= 0.95, (number, turn)
        items += [codex.kept(item) for item in response["output"]]
        items += (
            codex.calls(number) if number % 3 else [codex.message("user", codex.prose(5, number))]
        )
        if number == 4:
            items.append(codex.message("developer", "Approvals: never."))
