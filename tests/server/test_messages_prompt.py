"""server/messages_prompt.py: what templates get of Anthropic's messages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from server.errors import ApiError
from server.messages_fields import Message
from server.messages_prompt import conversation
from tests.clients.claude_code import ClaudeCode


def plain(system: list[str], *messages: tuple[str, Any]) -> list[dict[str, Any]]:
    made = [{"role": role, "content": content} for role, content in messages]
    return conversation(system, msgspec.convert(made, list[Message]))


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def call(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": "look", "input": {}}


def result(name: str, content: Any = "seen") -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": name, "content": content}


def test_system_message_before_all_others_joins_the_system_prompt() -> None:
    made = plain(["a"], ("system", "b"), ("user", "go"))
    assert made == [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "go"}]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("b", "<system-reminder>\nb\n</system-reminder>"),
        ("<system-reminder>b</system-reminder>", "<system-reminder>b</system-reminder>"),
        ([text("b"), text("c")], "<system-reminder>\nb\n\nc\n</system-reminder>"),
    ],
)
def test_later_system_message_is_part_of_the_users(said: Any, kept: str) -> None:
    assert plain([], ("user", "go"), ("system", said)) == [
        {"role": "user", "content": f"go\n\n{kept}"}
    ]
    after = plain([], ("user", "go"), ("assistant", "ok"), ("system", said), ("user", "on"))
    assert after[-1] == {"role": "user", "content": f"{kept}\n\non"}


def test_results_come_in_order_and_before_the_text() -> None:
    made = plain(
        [],
        ("user", "go"),
        ("assistant", [call("a"), call("b")]),
        ("user", [text("first"), result("a"), result("b", [text("x"), text("y")]), text("last")]),
        ("system", "mind"),
    )
    assert [m["role"] for m in made] == ["user", "assistant", "tool", "tool", "user"]
    assert [m.get("tool_call_id") for m in made[2:4]] == ["a", "b"]
    assert [m["name"] for m in made[2:4]] == ["look", "look"]
    assert made[3]["content"] == "x\ny"
    assert made[4]["content"].startswith("first\nlast\n\n<system-reminder>")


def test_neighbours_of_the_same_role_are_one() -> None:
    made = plain(
        [],
        ("user", "a"),
        ("user", "b"),
        ("assistant", [call("a")]),
        ("assistant", [text("c"), call("b")]),
        ("user", [result("a"), result("b")]),
    )
    assert [m["role"] for m in made] == ["user", "assistant", "tool", "tool"]
    assert made[0]["content"] == "a\n\nb"
    assert made[1]["content"] == "c"
    assert [c["id"] for c in made[1]["tool_calls"]] == ["a", "b"]


def test_calls_at_the_end_need_their_results() -> None:
    with pytest.raises(ApiError) as caught:
        plain([], ("user", "a"), ("assistant", [text("b"), call("c")]))
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_every_turn_begins_with_the_one_before() -> None:
    talk = ClaudeCode("m")
    before: list[dict[str, Any]] = []
    for turn in range(5):
        now = conversation([], msgspec.convert(talk.body()["messages"], list[Message]))
        assert now[: len(before)] == before
        assert len(now) > len(before)
        before = now
        talk.answer([{"type": "thinking", "thinking": "hm", "signature": "s"}, text(f"{turn}")])


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"type": "document", "source": {"type": "text", "data": "d"}, "title": "t"}, "t\nd"),
        (
            {"type": "search_result", "source": "s", "title": "t", "content": [text("x")]},
            "t\ns\nx",
        ),
        ({"type": "tool_reference", "tool_name": "look"}, "look"),
    ],
)
def test_blocks_that_stand_for_text(block: dict[str, Any], said: str) -> None:
    assert plain([], ("user", [block]))[0]["content"] == said
    assert plain([], ("user", [result("a", [block])]))[0]["content"] == said


@pytest.mark.parametrize(
    "block",
    [
        {"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "a", "content": {"type": "x"}},
        {"type": "document", "source": {"type": "url", "url": "http://localhost"}},
        {"type": "container_upload"},
        {"type": "tool_result", "tool_use_id": "a", "content": {"type": "text"}},
        {"type": "tool_result", "content": "x"},
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(block: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        plain([], ("user", [text("go"), block]))
    assert caught.value.status == 400
    assert str(caught.value.param).startswith("messages[0].content[1].")
