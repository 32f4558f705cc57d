"""The application on an engine that says what it is told."""

from __future__ import annotations

import asyncio
import functools

import httpx
from mlx_lm.utils import load_tokenizer
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from engine import embedded
from engine.params import SamplingParams
from engine.tokenizer import Tokenizer
from scheduler.events import Finished, FinishReason, Token
from scheduler.info import Health, ModelInfo, ServiceConfig
from scheduler.live import LoadedModel
from scheduler.metrics import Metrics
from scheduler.request import Request
from scheduler.service import Service
from scheduler.streams import EngineDead, RequestStream, Unfit
from server.access import Access, Grants
from server.app import create_app

from .access import bearer

EOS = 2
GOOD = Health(True, True, True, False, 0.0, None, 0, 0)
OPEN = Grants()
CONFIG = ServiceConfig("m", "m")
DEFAULTS = SamplingParams(temperature=0.6, top_p=0.95, top_k=20)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(load_tokenizer(embedded.path()))


class Scripted(Service):
    """Answers every request with ``says``, a token at a time."""

    def __init__(self, grants: Grants = OPEN, config: ServiceConfig = CONFIG) -> None:
        registry = CollectorRegistry()
        super().__init__(config, Metrics(registry), lambda _: None)
        self.tokenizer = tokenizer()
        info = ModelInfo("m", "m", 4096, 3072, frozenset({EOS}), "lent", 0, 1 << 30, DEFAULTS)
        self.models.main.facts = LoadedModel(info, self.tokenizer, 1 << 30)
        self.models.main.door.open()
        self.says = ""
        self.state = GOOD
        self.fits = 1 << 30  # requests that are taken; each one after them never fits
        self.fails_after: int | None = None  # tokens
        self.reason: FinishReason = "stop"
        self.apart = False  # whether tokens come one by one, as far as the event loop can tell
        self.requests: list[Request] = []
        self.access = Access(grants)
        self.app = create_app(self, registry, self.access, default_max_tokens=100)

    def health(self) -> Health:
        return self.state

    def check_alive(self) -> None:
        if not self.state.ready:
            raise EngineDead

    def enqueue(self, request: Request) -> RequestStream:
        self.check_alive()
        if len(self.requests) >= self.fits:
            raise Unfit("The prompt has too many tokens.")
        self.requests.append(request)
        stream = self._streams[request.id] = RequestStream(request)
        tokens = self.tokenizer.encode(self.says)[: self.fails_after]
        prompt, count = len(request.prompt), len(tokens) + 1
        end = Finished(request.id, self.reason, prompt, 0, count)
        if self.fails_after is not None:
            end = Finished(request.id, "error", prompt, 0, count, "The engine failed.")
        self._say([*(Token(request.id, token) for token in tokens), end])
        return stream

    def _say(self, events: list[Token | Finished]) -> None:
        first, *rest = events
        self._dispatch([first])
        if rest and self.apart:
            asyncio.get_running_loop().call_soon(self._say, rest)
        elif rest:
            self._dispatch(rest)

    @property
    def prompt(self) -> str:
        """The last prompt, as text."""
        return "".join(map(tokenizer().token_text, self.requests[-1].prompt))


def wired(app: ASGIApp, *, raises: bool = True, key: str | None = None) -> httpx.AsyncClient:
    """A client of an application, without a socket; faults of the application are raised."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=raises),
        base_url="http://server",
        headers={} if key is None else bearer(key),
    )
