"""HTTP responses under the name that vLLM's web framework gives them, for its dashboards."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HANDLERS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
STATUSES = ("2xx", "4xx", "5xx")


class HttpCounts:
    """Counts the responses of the routes that generate: others have no part in an error rate."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        text = "HTTP responses by their first line"
        labels = ("method", "handler", "status")
        total = Counter("http_requests", text, labels, registry=registry)
        self._series = {
            (handler, status): total.labels(method="POST", handler=handler, status=status)
            for handler in HANDLERS
            for status in STATUSES
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in HANDLERS:
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                series = self._series.get((scope["path"], f"{message['status'] // 100}xx"))
                if series is not None:
                    series.inc()
            await send(message)

        await self.app(scope, receive, counted)
