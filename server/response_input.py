"""Input items of a Responses request: checked, and in the one form in which they are kept."""

from __future__ import annotations

import binascii
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .body import convert
from .errors import bad_request

Item = dict[str, Any]
Recall = Callable[[str], Item | None]

MOST_ITEMS = 10_000
CHECK = 4  # bytes of a checksum
SEAL = "mlxc1."
INPUT_ROLES = ("user", "system", "developer")
TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
# What a hosted tool of another service did; the tools are left out, too.
LEFT_OUT = frozenset(
    {"ghost_snapshot", "image_generation_call", "mcp_list_tools", "web_search_call"}
)

# What the types of this file do not tell, because items are read one by one.
ITEMS_SCHEMA: dict[str, Any] = {
    "items": {
        "anyOf": [
            {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "type": {"const": "message"},
                    "role": {"enum": [*INPUT_ROLES, "assistant"]},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["type", "text"],
                                    "properties": {
                                        "type": {"enum": ["input_text", "output_text"]},
                                        "text": {"type": "string"},
                                    },
                                },
                            },
                        ]
                    },
                },
            },
            {
                "type": "object",
                "required": ["type"],
                "properties": {
                    "type": {
                        "enum": [
                            "function_call",
                            "function_call_output",
                            "custom_tool_call",
                            "custom_tool_call_output",
                            "reasoning",
                            "item_reference",
                        ]
                    }
                },
            },
        ]
    }
}


class Part(msgspec.Struct):
    """A piece of content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class MessageItem(msgspec.Struct):
    """A message of the conversation."""

    role: str
    content: str | list[Part]
    id: str | None = None


class CallItem(msgspec.Struct):
    """A call of a function that an earlier turn made; ``arguments`` is JSON text."""

    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    id: str | None = None


class CustomCallItem(msgspec.Struct):
    """A call of a freeform tool."""

    call_id: str
    name: str
    input: str
    namespace: str | None = None
    id: str | None = None


class CallOutputItem(msgspec.Struct):
    """What a called tool answered."""

    call_id: str
    output: str | list[Part]
    id: str | None = None


class ReasoningItem(msgspec.Struct):
    """A thought of an earlier turn, plain or as this server sealed it."""

    summary: list[Part] = []
    content: list[Part] | None = None
    encrypted_content: str | None = None
    id: str | None = None


def new_id(prefix: str) -> str:
    """A name for an item."""
    return f"{prefix}_{uuid.uuid4().hex}"


def seal(thought: str) -> str:
    """A thought as clients send it back unread. It hides nothing: they have seen the text."""
    data = thought.encode("utf-8", "replace")
    return SEAL + b64encode(_checksum(data) + data).decode("ascii")


def unseal(sealed: str, where: str) -> str:
    """The thought; "" for one that another service sealed. Raises ApiError 400."""
    if not sealed.startswith(SEAL):
        return ""
    try:
        # Not compressed: many small ones must not become more than there is memory.
        opened = b64decode(sealed[len(SEAL) :], validate=True)
        data = opened[CHECK:]
        if opened[:CHECK] != _checksum(data):
            raise ValueError
        return data.decode("utf-8")
    except ValueError as error:
        message = "This is no encrypted_content of this server."
        raise bad_request(message, where, "invalid_encrypted_content") from error


def _checksum(data: bytes) -> bytes:
    return binascii.crc32(data).to_bytes(CHECK, "big")


def read_items(given: str | Sequence[Item], recall: Recall) -> list[Item]:
    """The items of ``input``, references looked up by ``recall``. Raises ApiError 400, 404."""
    if isinstance(given, str):
        return [_input_message("user", [given], None)] if given else []
    if len(given) > MOST_ITEMS:
        raise bad_request(f"At most {MOST_ITEMS} items are possible.", "input")
    recall = _once(recall)
    read = (_read(item, f"input[{i}]", recall) for i, item in enumerate(given))
    return [item for item in read if item is not None]


def _read(item: Item, where: str, recall: Recall) -> Item | None:
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    if not isinstance(kind, str):
        raise bad_request("An item's type is a text.", f"{where}.type")
    if kind == "item_reference":
        return _recalled(item, where, recall)
    if kind in LEFT_OUT:
        return None
    reader = READERS.get(kind)
    if reader is None:
        message = f"An item of type {kind[:40]!r} cannot be served."
        raise bad_request(message, f"{where}.type", "unsupported")
    return reader(item, where)


def _once(recall: Recall) -> Recall:
    """The same, but each item one time: a long one may not be multiplied by short references."""
    named: set[str] = set()

    def item(name: str) -> Item | None:
        found = None if name in named else recall(name)
        named.add(name)
        return found

    return item


def _recalled(item: Item, where: str, recall: Recall) -> Item:
    name = item.get("id")
    found = recall(name) if isinstance(name, str) else None
    if found is None:
        message = f"There is no stored item {str(name)[:80]!r}, or it is referred to twice."
        raise bad_request(message, f"{where}.id")
    return found


def _message(item: Item, where: str) -> Item:
    message = convert(item, MessageItem, where)
    if message.role not in (*INPUT_ROLES, "assistant"):
        roles = ", ".join((*INPUT_ROLES, "assistant"))
        raise bad_request(
            f"{message.role[:40]!r} is not a role; there are {roles}.", f"{where}.role"
        )
    texts = _texts(message.content, f"{where}.content")
    if message.role == "assistant":
        return assistant_message(message.id or new_id("msg"), "".join(texts))
    return _input_message(message.role, texts, message.id)


def _input_message(role: str, texts: list[str], name: str | None) -> Item:
    return _whole("message", name or new_id("msg"), role=role, content=_parts(texts))


def assistant_message(name: str, text: str) -> Item:
    """A message of the model's."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return _whole("message", name, role="assistant", content=[part])


def _texts(content: str | list[Part], where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    for i, part in enumerate(content):
        if part.type not in TEXT_PARTS:
            raise bad_request(
                f"This model reads text only; a part of type {part.type[:40]!r} cannot be served.",
                f"{where}[{i}].type",
            )
    return [part.text or part.refusal or "" for part in content]


def _call(item: Item, where: str) -> Item:
    call = convert(item, CallItem, where)
    return _called("function_call", call.id or new_id("fc"), call, arguments=call.arguments)


def _custom_call(item: Item, where: str) -> Item:
    call = convert(item, CustomCallItem, where)
    return _called("custom_tool_call", call.id or new_id("ctc"), call, input=call.input)


def _called(kind: str, name: str, call: CallItem | CustomCallItem, **given: str) -> Item:
    read = _whole(kind, name, call_id=call.call_id, name=call.name, **given)
    return read if call.namespace is None else read | {"namespace": call.namespace}


def _output(item: Item, where: str) -> Item:
    output = convert(item, CallOutputItem, where)
    content: str | list[Item] = ""
    if isinstance(output.output, str):
        content = output.output
    else:
        content = _parts(_texts(output.output, f"{where}.output"))
    kind = item["type"]
    name = output.id or new_id("fco" if kind == "function_call_output" else "ctco")
    return _whole(kind, name, call_id=output.call_id, output=content)


def _reasoning(item: Item, where: str) -> Item:
    given = convert(item, ReasoningItem, where)
    thought = "".join(part.text or "" for part in given.content or ())
    if not thought and given.encrypted_content is not None:
        thought = unseal(given.encrypted_content, f"{where}.encrypted_content")
    return reasoning(given.id or new_id("rs"), thought)


def reasoning(name: str, thought: str) -> Item:
    """A thought. What it amounts to is not summarised."""
    content = [{"type": "reasoning_text", "text": thought}] if thought else []
    return _whole("reasoning", name, summary=[], content=content)


def _whole(kind: str, name: str, /, **fields: Any) -> Item:
    return {"type": kind, "id": name, "status": "completed", **fields}


def _parts(texts: Sequence[str]) -> list[Item]:
    return [{"type": "input_text", "text": text} for text in texts]


READERS: dict[str, Callable[[Item, str], Item]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _output,
    "reasoning": _reasoning,
}
