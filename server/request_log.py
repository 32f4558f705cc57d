"""One line in the log for every request, and its name on all other lines that come of it.

A request's record is filled while it is answered. It never holds what a client wrote, but for
names, which the formatters make harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import METRICS, OPEN, TENANT
from .errors import ERROR, REQUEST_ID, ApiError

logger = logging.getLogger("commons.request")
prompts = logging.getLogger("commons.prompts")

CLIENT_CLOSED = 499  # nobody reads it; the log does
GONE = "disconnect"  # what the log calls the end of a reply that nobody waited for
MOST_NAME = 200  # characters of what a client calls a model, or of a field at fault
MOST_PATH = 500
MOST_BODY = 100_000


class Tally(NamedTuple):
    """What the replies of one response cost; ``first_token`` by ``time.perf_counter``.

    ``cached`` is None where a reply did not get to its end.
    """

    response_id: str
    prompt: int
    cached: int | None
    completion: int
    reasoning: int
    first_token: float | None
    finish_reasons: tuple[str, ...]


class Tallied(Protocol):
    """What a response is made of."""

    def tally(self) -> Tally:
        """How far it has come."""
        ...


@dataclass(eq=False, slots=True)
class Record:
    """A request as the log tells it; ``model`` as it was asked for until it is found."""

    id: str
    method: str
    path: str
    client: str = ""
    log_bodies: bool = False
    began: float = field(default_factory=time.perf_counter)
    began_ns: int = field(default_factory=time.time_ns)  # since the epoch
    tenant: str = ""
    asked: str = ""
    model: str = ""
    status: int | None = None
    complete: bool = False  # whether the response was sent to its end
    error: ApiError | None = None
    replies: Tallied | None = None
    trace: tuple[str, str] | None = None  # ids of trace and span
    seconds: float = 0.0

    @property
    def quiet(self) -> bool:
        """Whether it only watched the server."""
        return self.path in OPEN or self.path == METRICS or (self.method, self.path) == PING

    @property
    def ttft(self) -> float | None:
        """Seconds from its arrival to the first token."""
        first = None if self.replies is None else self.replies.tally().first_token
        return None if first is None else first - self.began

    @property
    def error_code(self) -> str | None:
        """What went wrong, in the words of the API."""
        return None if self.error is None else self.error.code or self.error.type


PING = ("HEAD", "/")
_current: ContextVar[Record | None] = ContextVar("commons.record", default=None)


def current() -> Record | None:
    """The record of the request that is being answered; None outside of one."""
    return _current.get()


def request_id() -> str:
    """The name of the request that is being answered; "" outside of one."""
    record = current()
    return "" if record is None else record.id


def note_model(asked: str, found: str | None = None) -> None:
    """Notes which model was asked for and, once it is known, which one that is."""
    record = current()
    if record is not None:
        record.asked = asked[:MOST_NAME]
        record.model = found or ""


def note_replies(replies: Tallied) -> None:
    """Notes what the response is made of."""
    record = current()
    if record is not None:
        record.replies = replies


def log_body(body: bytes) -> None:
    """Logs what a client sent, where that was asked for (``--log-prompts``)."""
    record = current()
    if record is not None and record.log_bodies:
        text = body[: 4 * MOST_BODY].decode("utf-8", "replace")[:MOST_BODY]
        prompts.info("%s %s got %d bytes: %s", record.method, record.path, len(body), text)


class Tracer(Protocol):
    """Who keeps a trace of every request."""

    def begin(self, record: Record, scope: Scope) -> Any:
        """A span for a request that came; what is returned is given back at its end."""
        ...

    def end(self, span: Any, record: Record) -> None:
        """The request has been answered."""
        ...


class RequestLog:
    """Keeps a record of each request and logs it at its end."""

    def __init__(
        self, app: ASGIApp, tracer: Tracer | None = None, log_bodies: bool = False
    ) -> None:
        self.app = app
        self._tracer = tracer
        self._log_bodies = log_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = self._record(scope)
        traced = self._tracer is not None and not record.quiet
        span = self._tracer.begin(record, scope) if self._tracer and traced else None

        async def watched(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                record.status = message["status"]
            elif not message.get("more_body", False):
                record.complete = True

        token = _current.set(record)
        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            record.complete = False
            raise
        except Exception:
            record.status = record.status or HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            _finish(record, scope)
            if self._tracer and traced:
                self._tracer.end(span, record)
            _write(record)
            _current.reset(token)
            # Timers of the connection keep the context, and with it the record, for a while.
            record.replies = record.error = None

    def _record(self, scope: Scope) -> Record:
        client = scope.get("client")
        return Record(
            id=scope[REQUEST_ID],
            method=scope["method"],
            path=scope["path"][:MOST_PATH],
            client=client[0] if client else "",
            log_bodies=self._log_bodies,
        )


def _finish(record: Record, scope: Scope) -> None:
    record.seconds = time.perf_counter() - record.began
    record.status = record.status or CLIENT_CLOSED
    tenant = scope.get(TENANT)
    record.tenant = tenant.name if tenant is not None else ""
    record.error = scope.pop(ERROR, None)


def ends(record: Record, tally: Tally | None) -> tuple[str, ...]:
    """Why the replies of a response ended."""
    if record.status == CLIENT_CLOSED or not record.complete:
        return (GONE,)
    return () if tally is None else tally.finish_reasons


def _write(record: Record) -> None:
    # A stream may have begun with 200 before it failed.
    status = max(record.status or 0, 0 if record.error is None else record.error.status)
    level = logging.DEBUG if record.quiet and status < 400 else logging.INFO
    if status >= 500:
        level = logging.ERROR if status == HTTPStatus.INTERNAL_SERVER_ERROR else logging.WARNING
    if logger.isEnabledFor(level):
        fields = _fields(record)
        logger.log(level, "%s", _line(record, fields), extra={"fields": fields})


def _fields(record: Record) -> dict[str, Any]:
    """What is known of a request, by the names that ``--log-json`` gives it."""
    tally = None if record.replies is None else record.replies.tally()
    known: dict[str, Any] = {
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "duration_seconds": round(record.seconds, 6),
        "client": record.client or None,
        "tenant": record.tenant or None,
        "model": record.model or record.asked or None,
    }
    if tally is not None:
        known |= {
            "response_id": tally.response_id,
            "prompt_tokens": tally.prompt,
            "cached_tokens": tally.cached,
            "generated_tokens": tally.completion,
            "reasoning_tokens": tally.reasoning or None,
            "ttft_seconds": None if record.ttft is None else round(record.ttft, 6),
        }
    known["finish_reason"] = ",".join(ends(record, tally)) or None
    if record.error is not None:
        known["error"] = record.error_code
        known["param"] = record.error.param and record.error.param[:MOST_NAME]
    if record.trace is not None:
        known["trace_id"], known["span_id"] = record.trace
    return {name: value for name, value in known.items() if value is not None}


SHORT = {
    "tenant": "tenant",
    "model": "model",
    "response_id": "id",
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "generated_tokens": "generated",
    "finish_reason": "finish",
    "error": "error",
    "param": "param",
}


def _line(record: Record, fields: dict[str, Any]) -> str:
    """The same for people."""
    said = [f"{record.method} {record.path} {record.status} in {record.seconds:.3f} s"]
    said += [f"{short}={_word(fields[name])}" for name, short in SHORT.items() if name in fields]
    if record.ttft is not None:
        said.append(f"ttft={record.ttft:.3f}s")
    return " ".join(said)


def _word(value: Any) -> str:
    """A value that cannot be taken for several."""
    text = str(value)
    return repr(text) if any(c.isspace() or c in "='\"" for c in text) else text
