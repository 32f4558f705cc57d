"""From parsed replies to Anthropic's content blocks, stop reasons and usage. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from .delta import CallDelta, Delta
from .generation import Choice, Usage

# Clients send a thought back with it. There is nothing to prove: a changed one changes no more
# than any other changed message does.
SIGNATURE = "bWx4LWNvbW1vbnM="

Kind = Literal["text", "thinking", "tool_use"]
Event = dict[str, Any]


class Blocks:
    """The content blocks of one reply, as events of its stream.

    Where thoughts are not ``shown``, that there was one still is.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._count = 0
        self._open: Kind | None = None
        self._call = -1  # number of the call in the open block
        self._written = ""  # of its arguments, and not told
        self._object = False  # whether they are one

    def add(self, delta: Delta) -> list[Event]:
        """The events of what a token, or several, added."""
        events: list[Event] = []
        calls = list(delta.calls)
        # What continues the open block comes first, whatever is to follow it.
        if calls and self._open == "tool_use" and calls[0].number == self._call:
            events += self._called(calls.pop(0))
        if delta.text and self._open == "text":
            events += self._said(delta.text) + self._thought(delta.thought)
        else:
            events += self._thought(delta.thought) + self._said(delta.text)
        for call in calls:
            events += self._called(call)
        return events

    def end(self) -> list[Event]:
        """The events at the end; a message has one block at least."""
        events = [] if self._count else self._begin("text")
        return events + self._close()

    def _said(self, text: str) -> list[Event]:
        if not text:
            return []
        begun = [] if self._open == "text" else self._begin("text")
        return [*begun, self._delta("text_delta", text=text)]

    def _thought(self, thought: str) -> list[Event]:
        if not thought:
            return []
        begun = [] if self._open == "thinking" else self._begin("thinking")
        shown = [self._delta("thinking_delta", thinking=thought)] if self._shown else []
        return begun + shown

    def _called(self, call: CallDelta) -> list[Event]:
        events = []
        if self._open != "tool_use" or call.number != self._call:
            self._call = call.number
            name = call.id.replace("call_", "toolu_", 1)
            events += self._begin("tool_use", id=name, name=call.name)
        return events + self._arguments(call.arguments)

    def _arguments(self, text: str) -> list[Event]:
        """An object as it is written; what is none waits to be made one, for clients parse it."""
        if not self._object:
            self._written += text if self._written else text.lstrip()
            self._object = self._written.startswith("{")
            if not self._object:
                return []
            text, self._written = self._written, ""
        return [self._delta("input_json_delta", partial_json=text)] if text else []

    def _begin(self, kind: Kind, **more: str) -> list[Event]:
        closed = self._close()
        self._open = kind
        self._written, self._object = "", False
        empty: dict[Kind, dict[str, Any]] = {
            "text": {"text": ""},
            "thinking": {"thinking": "", "signature": ""},
            "tool_use": {"input": {}},
        }
        block = {"type": kind, **more, **empty[kind]}
        begun = {"type": "content_block_start", "index": self._count, "content_block": block}
        self._count += 1
        return [*closed, begun]

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        last = []
        if self._open == "thinking":
            last = [self._delta("signature_delta", signature=SIGNATURE)]
        if self._open == "tool_use" and self._written:
            text = json.dumps(_input(self._written), ensure_ascii=False)
            last = [self._delta("input_json_delta", partial_json=text)]
        self._open = None
        return [*last, {"type": "content_block_stop", "index": self._count - 1}]

    def _delta(self, kind: str, **more: str) -> Event:
        delta = {"type": kind, **more}
        return {"type": "content_block_delta", "index": self._count - 1, "delta": delta}


def content_of(deltas: Sequence[Delta], *, shown: bool) -> list[dict[str, Any]]:
    """The content blocks of a whole reply."""
    blocks = Blocks(shown=shown)
    events = [event for delta in deltas for event in blocks.add(delta)] + blocks.end()
    content: list[dict[str, Any]] = []
    texts: list[list[str]] = []
    for event in events:
        if event["type"] == "content_block_start":
            content.append(event["content_block"])
            texts.append([])
        elif event["type"] == "content_block_delta":
            kind, text = event["delta"].values()
            if kind == "signature_delta":
                content[-1]["signature"] = text
            else:
                texts[-1].append(text)
    for block, parts in zip(content, texts, strict=True):
        kind, text = block["type"], "".join(parts)
        block["input" if kind == "tool_use" else kind] = (
            _input(text) if kind == "tool_use" else text
        )
    return content


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments as the object that Anthropic's clients expect."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        parsed = arguments
    return parsed if isinstance(parsed, dict) else {"input": parsed}


class Stop(NamedTuple):
    """Why a message ended."""

    stop_reason: str
    stop_sequence: str | None

    @staticmethod
    def of(choice: Choice, *, clipped: bool) -> Stop:
        """The end of a finished choice; ``clipped`` where the context had less room than wanted."""
        if choice.finish_reason == "tool_calls":
            return Stop("tool_use", None)
        if choice.finish_reason == "length":
            return Stop("model_context_window_exceeded" if clipped else "max_tokens", None)
        if choice.output.stop is not None:
            return Stop("stop_sequence", choice.output.stop)
        return Stop("end_turn", None)


def usage_dict(usage: Usage, *, writes: bool) -> dict[str, int]:
    """Usage in Anthropic's shape: the three kinds of input add up to the prompt.

    The server keeps every prompt. With ``writes``, for a client that asks for it, what was
    computed is told as written to the cache, but for the last token, which never is read.
    """
    computed = usage.prompt - usage.cached
    written = max(0, computed - 1) if writes else 0
    return {
        "input_tokens": computed - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
