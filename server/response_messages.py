"""Items of a conversation as a chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.tokenizer import Message

from .errors import bad_request
from .messages_prompt import REMINDER
from .response_input import Item
from .response_tools import Known, Toolbox

TEXTS = ("content", "reasoning_content")
BETWEEN = "\n\n"  # of texts that become one message


def template_messages(
    items: Sequence[Item], toolbox: Toolbox, instructions: str | None
) -> list[Message]:
    """All items as messages, the same items always as the same ones. Raises ApiError 400.

    ``instructions``, or where there are none a system or developer item at the beginning, are the
    system message, for a template takes one; others reach the model as marked parts of user
    messages. What the model said in one turn is one message, and so is what a user said without
    an answer between, since templates want turns.
    """
    # Templates put tools behind the system message. What a client says first is its own and the
    # same for all of its sessions; further developer items tell of one's folder and permissions.
    rest = items
    system = [instructions] if instructions else []
    if not system and items and _instructs(items[0]):
        system, rest = [_text(items[0])], items[1:]
    turns = _Turns(toolbox)
    if system:
        turns.messages.append({"role": "system", "content": system})
    for item in rest:
        turns.add(item)
    if not turns.messages:
        raise bad_request("input is empty.", "input")
    if turns.messages[-1].get("tool_calls"):
        raise bad_request("The last call of a tool has no output.", "input")
    return turns.joined()


def _instructs(item: Item) -> bool:
    return item["type"] == "message" and item["role"] in ("system", "developer")


def _text(item: Item) -> str:
    return "\n".join(part["text"] for part in item["content"])


class _Turns:
    """Messages whose texts are lists yet, so that a text of many parts is joined once."""

    def __init__(self, toolbox: Toolbox) -> None:
        self.messages: list[Message] = []
        self._toolbox = toolbox
        self._called: dict[str, str] = {}  # by call, the tool's name

    def add(self, item: Item) -> None:
        kind = item["type"]
        if kind == "message":
            self._message(item)
        elif kind == "reasoning":
            thought = "".join(part["text"] for part in item["content"])
            self._append("assistant", "reasoning_content", thought)
        elif kind == "function_call":
            self._call(item, "function", _arguments(item["arguments"]))
        elif kind == "custom_tool_call":
            self._call(item, "custom", {"input": item["input"]})
        else:
            self._output(item)

    def joined(self) -> list[Message]:
        """The messages."""
        return [
            {name: BETWEEN.join(v) if name in TEXTS else v for name, v in message.items()}
            for message in self.messages
        ]

    def _message(self, item: Item) -> None:
        if item["role"] == "assistant":
            self._append("assistant", "content", _text(item))
        elif item["role"] == "user":
            self._append("user", "content", _text(item))
        else:
            self._append("user", "content", REMINDER.format(_text(item)))

    def _call(self, item: Item, kind: Any, arguments: Any) -> None:
        name = self._toolbox.flat(Known(kind, item["name"], item.get("namespace")))
        self._called[item["call_id"]] = name
        function = {"name": name, "arguments": arguments}
        calls = self._turn("assistant").setdefault("tool_calls", [])
        calls.append({"id": item["call_id"], "type": "function", "function": function})

    def _output(self, item: Item) -> None:
        call, output = item["call_id"], item["output"]
        if call not in self._called:
            raise bad_request(f"There is no call {call[:80]!r} to this output.", "input")
        if not isinstance(output, str):
            output = "\n".join(part["text"] for part in output)
        self.messages.append(
            {"role": "tool", "content": [output], "tool_call_id": call, "name": self._called[call]}
        )

    def _append(self, role: str, field: str, text: str) -> None:
        if text:
            self._turn(role).setdefault(field, []).append(text)
        else:
            self._turn(role)  # also an empty message is a turn

    def _turn(self, role: str) -> Message:
        """The last message, if it is that role's, else a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": []})
        return self.messages[-1]


def _arguments(text: str) -> Any:
    """Arguments as templates want them; what a model once wrote need not be JSON."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text
