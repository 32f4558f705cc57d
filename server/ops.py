"""What watches the server: liveness, health, readiness and metrics. Enqueues no work."""

from __future__ import annotations

from typing import Any

import anyio
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from scheduler.info import Health
from scheduler.service import Service

from .dialect import encode
from .vllm_metrics import VllmNames

STALE = 60.0  # seconds without a step after which the engine counts as hung


class Ops:
    """The routes."""

    def __init__(self, service: Service, registry: Collector) -> None:
        self._service = service
        self._registry = registry

    async def here(self, request: Request) -> Response:
        """``HEAD /``: there is a server, as clients ask before they ask for more."""
        return Response()

    async def livez(self, request: Request) -> Response:
        """The process answers: 200."""
        return _json(200, {"status": "ok"})

    async def health(self, request: Request) -> Response:
        """The engine works: 200, else 503."""
        health = self._service.health()
        stale = health.loaded and health.heartbeat_age > STALE
        good = health.alive and not stale
        status = "ok" if good else "engine hung" if health.alive else "engine failed"
        return _json(200 if good else 503, {"status": status, **_numbers(health)})

    async def ready(self, request: Request) -> Response:
        """Requests are taken: 200, else 503."""
        health = self._service.health()
        status = "ready"
        if not health.ready:
            status = "draining" if health.draining else "loading" if health.alive else "failed"
        return _json(200 if health.ready else 503, {"status": status, **_numbers(health)})

    async def metrics(self, request: Request) -> Response:
        """Everything that Prometheus scrapes."""
        self._service.observe()
        accept = request.headers.get("accept", "")
        if isinstance(self._registry, VllmNames):
            accept = ""  # the client library's OpenMetrics would spoil the colons in the names
        write, content_type = choose_encoder(accept)
        # On a thread: with many adapters it takes longer than a stream should wait.
        text = await anyio.to_thread.run_sync(write, self._registry)
        return Response(text, headers={"content-type": content_type})


def _numbers(health: Health) -> dict[str, Any]:
    return {
        "running": health.running,
        "waiting": health.waiting,
        "heartbeat_age_seconds": round(health.heartbeat_age, 3),
    }


def _json(status: int, body: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(encode(body), status, headers, media_type="application/json")
