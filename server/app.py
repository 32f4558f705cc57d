"""The ASGI application: routes, errors, and a name for every request."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler.service import Service

from .access import Access
from .admin import AdapterAdmin
from .auth import Authentication
from .chat import ChatCompletions
from .completions import Completions
from .errors import REQUEST_ID, exception_handlers, is_anthropic
from .generation import TextThreads
from .messages import Messages
from .model_admin import ModelAdmin
from .models import Models
from .openapi import openapi
from .ops import Ops
from .rate_limits import RateLimitHeaders
from .reload import ReloadAdmin, Reloader
from .request_log import RequestLog, Tracer
from .responses import Responses
from .usage_admin import UsageAdmin
from .usage_store import UsageStore

SOUND_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def create_app(
    service: Service,
    registry: Collector,
    access: Access,
    *,
    default_max_tokens: int,
    adapter_dir: Path | None = None,
    usage: UsageStore | None = None,
    reloader: Reloader | None = None,
    tracer: Tracer | None = None,
    log_prompts: bool = False,
) -> ASGIApp:
    """The application in front of ``service``; its routes answer also while it loads.

    ``usage`` keeps what tenants use; without it nothing outlives the process. With
    ``log_prompts`` the log has what clients send.
    """
    threads = TextThreads()
    chat = ChatCompletions(service, threads, default_max_tokens)
    text = Completions(service, threads, default_max_tokens)
    responses = Responses(service, threads, default_max_tokens)
    messages = Messages(service, threads, default_max_tokens)
    models, ops = Models(service), Ops(service, registry)
    adapters, loads = AdapterAdmin(service, adapter_dir), ModelAdmin(service)
    used = UsageAdmin(usage or UsageStore(service.tenants.usage, None))
    reloads = ReloadAdmin(reloader)
    routes = [
        Route("/v1/chat/completions", chat.post, methods=["POST"]),
        Route("/v1/completions", text.post, methods=["POST"]),
        Route("/v1/responses", responses.post, methods=["POST"]),
        Route("/v1/responses/{response}", responses.get),
        Route("/v1/responses/{response}", responses.delete, methods=["DELETE"]),
        Route("/v1/responses/{response}/cancel", responses.cancel, methods=["POST"]),
        Route("/v1/responses/{response}/input_items", responses.input_items),
        Route("/v1/messages", messages.post, methods=["POST"]),
        Route("/v1/messages/count_tokens", messages.count, methods=["POST"]),
        Route("/v1/models", models.all),
        Route("/v1/models/{model:path}", models.one),
        Route("/admin/adapters", adapters.all),
        Route("/admin/adapters", adapters.load, methods=["POST"]),
        Route("/admin/adapters/{name}", adapters.change, methods=["PATCH"]),
        Route("/admin/adapters/{name}", adapters.unload, methods=["DELETE"]),
        Route("/admin/models", loads.all),
        Route("/admin/models", loads.load, methods=["POST"]),
        Route("/admin/models/{name:path}", loads.unload, methods=["DELETE"]),
        Route("/admin/usage", used.get),
        Route("/admin/reload", reloads.reload, methods=["POST"]),
        Route("/", ops.here, methods=["HEAD"]),
        Route("/livez", ops.livez),
        Route("/health", ops.health),
        Route("/ready", ops.ready),
        Route("/metrics", ops.metrics),
        Route("/openapi.json", openapi),
    ]
    app = Starlette(routes=routes, exception_handlers=dict(exception_handlers))
    app.router.redirect_slashes = False
    # Outside of everything, so that the answer to a fault has its name, too.
    metered = RateLimitHeaders(app, service.tenants.meters)
    guarded = Authentication(metered, access)
    return RequestIds(RequestLog(guarded, tracer, log_prompts))


class RequestIds:
    """Gives every response an ``x-request-id``: the client's own where it sent a sound one.

    The same under the name by which Anthropic's clients know it, on their routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        sound = SOUND_ID.fullmatch(given)
        name = given.decode("ascii") if sound else f"req_{uuid.uuid4().hex}"
        scope[REQUEST_ID] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                if is_anthropic(scope):
                    headers["request-id"] = name
            await send(message)

        await self.app(scope, receive, named)
