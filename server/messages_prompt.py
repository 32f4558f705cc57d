"""From Anthropic's messages to those that chat templates know. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.tokenizer import Message as Plain

from .chat import MOST_MESSAGES
from .errors import bad_request
from .messages_fields import Block, Message

ROLES = ("user", "assistant", "system")
REMINDER = "<system-reminder>\n{}\n</system-reminder>"


def system_blocks(system: str | list[Block] | None) -> list[str]:
    """The texts of a system prompt. Raises ApiError."""
    if system is None:
        return []
    if isinstance(system, str):
        return [system]
    return [_text(block, f"system[{i}]") for i, block in enumerate(system)]


def conversation(system: Sequence[str], messages: Sequence[Message]) -> list[Plain]:
    """A conversation for the template: what was said before reads the same in every later turn.

    Raises ApiError.
    """
    if not messages:
        raise bad_request("messages is empty.", "messages")
    if len(messages) > MOST_MESSAGES:
        raise bad_request(f"At most {MOST_MESSAGES} messages are possible.", "messages")
    made = _Conversation(system)
    for i, message in enumerate(messages):
        made.add(message, f"messages[{i}]")
    if made.plain[-1].get("tool_calls"):  # a template continues a text; it would drop the calls
        raise bad_request("The last tool_use has no tool_result.", "messages")
    return made.plain


class _Conversation:
    """Grows by messages; a message changes nothing before it but its neighbour of the same role.

    Many templates know a system message at the beginning only, and want user and assistant to
    take turns. So a later one becomes a part of the user's message, in the form in which such
    clients send their other reminders.
    """

    def __init__(self, system: Sequence[str]) -> None:
        self.plain: list[Plain] = []
        self._tools: dict[str, str] = {}  # names by the id of the call
        if any(system):
            self.plain.append({"role": "system", "content": "\n\n".join(system)})

    def add(self, message: Message, where: str) -> None:
        if message.role not in ROLES:
            there = ", ".join(ROLES)
            raise bad_request(
                f"{message.role[:40]!r} is not a role; there are {there}.", f"{where}.role"
            )
        content = message.content
        blocks = [Block("text", text=content)] if isinstance(content, str) else content
        where = f"{where}.content"
        if message.role == "assistant":
            self._assistant(blocks, where)
        elif message.role == "user":
            self._user(blocks, where)
        else:
            self._system(blocks, where)

    def _system(self, blocks: Sequence[Block], where: str) -> None:
        text = "\n\n".join(_text(block, f"{where}[{i}]") for i, block in enumerate(blocks))
        if all(message["role"] == "system" for message in self.plain):
            self._say("system", text)
        else:
            reminds = text.lstrip().startswith("<system-reminder>")
            self._say("user", text if reminds else REMINDER.format(text.strip("\n")))

    def _user(self, blocks: Sequence[Block], where: str) -> None:
        if not blocks:
            raise bad_request("A user message needs content.", where)
        texts = []
        for i, block in enumerate(blocks):
            if block.type == "tool_result":
                self._result(block, f"{where}[{i}]")
            else:
                texts.append(_text(block, f"{where}[{i}]"))
        if texts:
            self._say("user", "\n".join(texts))

    def _result(self, block: Block, where: str) -> None:
        if not block.tool_use_id:
            raise bad_request("A tool_result needs a tool_use_id.", f"{where}.tool_use_id")
        text = _nested(block.content, f"{where}.content")
        made = {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": f"Error: {text}" if block.is_error else text,
        }
        if name := self._tools.get(block.tool_use_id):
            made["name"] = name
        self.plain.append(made)

    def _assistant(self, blocks: Sequence[Block], where: str) -> None:
        texts, thoughts, calls = [], [], []
        for i, block in enumerate(blocks):
            if block.type == "thinking":
                thoughts.append(block.thinking or "")
            elif block.type == "tool_use":
                calls.append(self._call(block, f"{where}[{i}]"))
            elif block.type != "redacted_thinking":
                texts.append(_text(block, f"{where}[{i}]"))
        message = self._say("assistant", "\n".join(texts))
        if any(thoughts):
            message["reasoning_content"] = "\n".join(thoughts)
        if calls:
            message["tool_calls"] = message.get("tool_calls", []) + calls

    def _call(self, block: Block, where: str) -> dict[str, Any]:
        for name in ("id", "name"):
            if not getattr(block, name):
                raise bad_request(f"A tool_use needs its {name}.", f"{where}.{name}")
        assert block.id is not None and block.name is not None
        self._tools[block.id] = block.name
        function = {"name": block.name, "arguments": block.input or {}}
        return {"id": block.id, "type": "function", "function": function}

    def _say(self, role: str, text: str) -> Plain:
        """Adds to the last message where that has the same role."""
        if self.plain and self.plain[-1]["role"] == role:
            last = self.plain[-1]
            last["content"] = "\n\n".join(filter(None, (last["content"], text)))
            return last
        self.plain.append({"role": role, "content": text})
        return self.plain[-1]


def _text(block: Block, where: str) -> str:
    """The text of a block that is nothing but text, or stands for some."""
    if block.type == "text" and block.text is not None:
        return block.text
    if block.type == "text":
        raise bad_request("A text block needs its text.", f"{where}.text")
    if block.type == "tool_reference" and block.tool_name:
        return block.tool_name
    if block.type == "search_result":
        heading = [block.title or "", block.source if isinstance(block.source, str) else ""]
        return "\n".join([*filter(None, heading), _nested(block.content, f"{where}.content")])
    if block.type == "document":
        return _document(block, where)
    message = f"This model reads text only; a block of type {block.type[:40]!r} cannot be served."
    raise bad_request(message, f"{where}.type", "unsupported")


def _document(block: Block, where: str) -> str:
    source = block.source if isinstance(block.source, dict) else {}
    text = source.get("data") if source.get("type") == "text" else None
    if not isinstance(text, str):
        message = "This model reads text only: a document's source must be of type 'text'."
        raise bad_request(message, f"{where}.source", "unsupported")
    return "\n".join(filter(None, (block.title, text)))


def _nested(content: str | list[Block] | dict[str, Any] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        raise bad_request("content is a text or a list of blocks.", where)
    return "\n".join(_text(block, f"{where}[{i}]") for i, block in enumerate(content))
