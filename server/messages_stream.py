"""The events of a streamed message, in Anthropic's order.

The prompt's tokens that were reused are known at the end: ``message_start`` counts all as input,
and ``message_delta`` says what they were.
"""

from __future__ import annotations

from typing import Any

from .dialect import Manner, encode
from .errors import ApiError, anthropic_error_body, on_anthropic
from .generation import Choice, Piece, Usage
from .messages_reply import Blocks, Event, Stop, usage_dict
from .sse import KeepAlive


def named(data: dict[str, Any]) -> bytes:
    """An event under the name of its type; clients pass over those without a name."""
    kind: str = data["type"]
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(data))


PING = named({"type": "ping"})
# Clients give up a stream that is silent for long, as it is while a prompt waits or is read.
# They take a ping at any place, also before the message starts.
ALIVE = KeepAlive(PING, 10.0)


def failed(error: ApiError, request_id: str) -> bytes:
    """The last event of a stream that broke."""
    return named(anthropic_error_body(on_anthropic(error), request_id))


ANTHROPIC = Manner(ALIVE, failed, b"")


class MessageEvents:
    """A message's events; ``message`` is what is known of it at the start."""

    def __init__(
        self, message: dict[str, Any], *, shown: bool, clipped: bool, writes: bool
    ) -> None:
        self._message = message
        self._blocks = Blocks(shown=shown)
        self._clipped = clipped
        self._writes = writes
        self._stop: Stop | None = None

    def first(self, choice: Choice) -> bytes:
        return named({"type": "message_start", "message": self._message}) + PING

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        return _all(self._blocks.add(piece.delta))

    def last(self, choice: Choice) -> bytes:
        self._stop = Stop.of(choice, clipped=self._clipped)
        return _all(self._blocks.end())

    def usage(self, usage: Usage) -> bytes:
        assert self._stop is not None
        told = {**usage_dict(usage, writes=self._writes), **thinking_tokens(usage)}
        end = {"type": "message_delta", "delta": self._stop._asdict(), "usage": told}
        return named(end) + named({"type": "message_stop"})


def thinking_tokens(usage: Usage) -> dict[str, Any]:
    """The part of the output that was thought."""
    return {"output_tokens_details": {"thinking_tokens": usage.reasoning}}


def _all(events: list[Event]) -> bytes:
    return b"".join(map(named, events))
