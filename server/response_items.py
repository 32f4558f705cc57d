"""The output items of a response as a reply grows, and the events that tell of each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from .output import CallDelta, Delta
from .response_input import Item, assistant_message, new_id, reasoning, seal
from .response_tools import Known, Toolbox

Event = dict[str, Any]
Status = Literal["completed", "incomplete"]


class Open(Protocol):
    """The item that a reply is writing at the moment."""

    item: Item

    def begin(self) -> list[Event]: ...
    def end(self, status: Status) -> list[Event]: ...


class Items:
    """The items of one reply; ``encrypted`` seals its thoughts for the way back."""

    def __init__(self, toolbox: Toolbox, *, encrypted: bool = False) -> None:
        self._toolbox = toolbox
        self._encrypted = encrypted
        self._done: list[Item] = []
        self._open: Open | None = None

    @property
    def output(self) -> list[Item]:
        """The items so far."""
        return [*self._done, *([self._open.item] if self._open is not None else [])]

    def add(self, delta: Delta, logprobs: Sequence[Item] = ()) -> list[Event]:
        """What ``delta`` changes. ``logprobs`` are of its text."""
        events: list[Event] = []
        calls = list(delta.calls)
        while calls and self._continues(calls[0]):
            events += self._call(calls.pop(0))
        if delta.thought:
            events += self._thought(delta.thought)
        if delta.text:
            events += self._text(delta.text, logprobs)
        for call in calls:
            events += self._call(call)
        return events

    def end(self, status: Status) -> list[Event]:
        """The end of the reply; only its last item can be incomplete."""
        return self._close(status)

    def _continues(self, call: CallDelta) -> bool:
        return isinstance(self._open, _Call) and self._open.number == call.number

    def _text(self, text: str, logprobs: Sequence[Item]) -> list[Event]:
        events: list[Event] = []
        if not isinstance(self._open, _Text):
            events += self._start(_Text)
        assert isinstance(self._open, _Text)
        return events + self._open.add(text, logprobs)

    def _thought(self, text: str) -> list[Event]:
        events: list[Event] = []
        if not isinstance(self._open, _Thought):
            events += self._start(partial(_Thought, self._encrypted))
        assert isinstance(self._open, _Thought)
        return events + self._open.add(text)

    def _call(self, call: CallDelta) -> list[Event]:
        events: list[Event] = []
        if not self._continues(call):
            known = self._toolbox.known(call.name)
            kind = _CustomCall if known.kind == "custom" else _Call
            events += self._start(partial(kind, call, known))
        assert isinstance(self._open, _Call)
        return events + self._open.add(call.arguments)

    def _start(self, make: Callable[[int], Open]) -> list[Event]:
        events = self._close("completed")
        self._open = make(len(self._done))
        return events + self._open.begin()

    def _close(self, status: Status) -> list[Event]:
        if self._open is None:
            return []
        closing, self._open = self._open, None
        events = closing.end(status)
        self._done.append(closing.item)
        return events


class _Part:
    """An item with one part of text: a message or a thought."""

    def __init__(self, index: int, item: Item, part: Item, name: str) -> None:
        self.item = item | {"status": "in_progress", "content": []}
        self._name = name  # of the events
        self._part = part
        self._where = {"item_id": item["id"], "output_index": index, "content_index": 0}
        self._pieces: list[str] = []

    def begin(self) -> list[Event]:
        index = self._where["output_index"]
        return [
            {"type": "response.output_item.added", "output_index": index, "item": self.item},
            {"type": "response.content_part.added", **self._where, "part": self._part},
        ]

    def _piece(self, text: str, **more: Any) -> list[Event]:
        self._pieces.append(text)
        return [{"type": f"response.{self._name}.delta", **self._where, "delta": text, **more}]

    def _finish(self, status: Status, **more: Any) -> list[Event]:
        text = "".join(self._pieces)
        part = self._part | {"text": text} | more
        self.item = self.item | {"status": status, "content": [part]}
        index = self._where["output_index"]
        return [
            {"type": f"response.{self._name}.done", **self._where, "text": text, **more},
            {"type": "response.content_part.done", **self._where, "part": part},
            {"type": "response.output_item.done", "output_index": index, "item": self.item},
        ]


class _Text(_Part):
    def __init__(self, index: int) -> None:
        item = assistant_message(new_id("msg"), "")
        super().__init__(index, item, item["content"][0], "output_text")
        self._logprobs: list[Item] = []

    def add(self, text: str, logprobs: Sequence[Item]) -> list[Event]:
        self._logprobs += logprobs
        return self._piece(text, logprobs=list(logprobs))

    def end(self, status: Status) -> list[Event]:
        return self._finish(status, logprobs=self._logprobs)


class _Thought(_Part):
    def __init__(self, encrypted: bool, index: int) -> None:
        item = reasoning(new_id("rs"), "")
        super().__init__(index, item, {"type": "reasoning_text", "text": ""}, "reasoning_text")
        self._encrypted = encrypted

    def add(self, text: str) -> list[Event]:
        return self._piece(text)

    def end(self, status: Status) -> list[Event]:
        if self._encrypted:
            self.item = self.item | {"encrypted_content": seal("".join(self._pieces))}
        return self._finish(status)


class _Call:
    def __init__(self, call: CallDelta, known: Known, index: int) -> None:
        self.number = call.number
        self.item: Item = self._first(call, known)
        if known.namespace is not None:
            self.item["namespace"] = known.namespace
        self._index = index
        self._where = {"item_id": self.item["id"], "output_index": index}
        self._pieces: list[str] = []

    def begin(self) -> list[Event]:
        return [self._about("response.output_item.added")]

    def add(self, arguments: str) -> list[Event]:
        self._pieces.append(arguments)
        if not arguments:
            return []
        name = "response.function_call_arguments.delta"
        return [{"type": name, **self._where, "delta": arguments}]

    def end(self, status: Status) -> list[Event]:
        arguments = "".join(self._pieces)
        self.item = self.item | {"status": status, "arguments": arguments}
        name = "response.function_call_arguments.done"
        done = {"type": name, **self._where, "name": self.item["name"], "arguments": arguments}
        return [done, self._about("response.output_item.done")]

    def _about(self, kind: str) -> Event:
        return {"type": kind, "output_index": self._index, "item": self.item}

    def _first(self, call: CallDelta, known: Known) -> Item:
        return {
            "type": "function_call",
            "id": new_id("fc"),
            "status": "in_progress",
            "call_id": call.id,
            "name": known.name,
            "arguments": "",
        }


class _CustomCall(_Call):
    """A call of a freeform tool: the text lies inside the JSON that the model writes, so it is
    known when that is whole."""

    def add(self, arguments: str) -> list[Event]:
        self._pieces.append(arguments)
        return []

    def end(self, status: Status) -> list[Event]:
        text = freeform_input("".join(self._pieces))
        self.item = self.item | {"status": status, "input": text}
        name = "response.custom_tool_call_input"
        return [
            {"type": f"{name}.delta", **self._where, "delta": text},
            {"type": f"{name}.done", **self._where, "input": text},
            self._about("response.output_item.done"),
        ]

    def _first(self, call: CallDelta, known: Known) -> Item:
        return {
            "type": "custom_tool_call",
            "id": new_id("ctc"),
            "status": "in_progress",
            "call_id": call.id,
            "name": known.name,
            "input": "",
        }


def freeform_input(arguments: str) -> str:
    """What a model wrote for a freeform tool: its one argument, or all where that is not there."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = parsed.get("input") if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else arguments
