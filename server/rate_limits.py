"""Tenants' limits in HTTP: who pays, refusals, and the headers that tell what is left."""

from __future__ import annotations

import math

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler.limits import Level, Meters, OverLimit
from scheduler.tenant import Tenant

from .auth import tenant_of
from .errors import ApiError

METERED = "commons.metered"  # in a scope: the tenant whose limits the request counts for
BYTES_A_TOKEN = 4  # of a JSON body, roughly; the true number is charged later


def metered(request: Request) -> Tenant:
    """The request's tenant, whose limits the response will tell."""
    tenant: Tenant = request.scope.setdefault(METERED, tenant_of(request.scope))
    return tenant


def estimated_tokens(request: Request) -> int:
    """About how many tokens the prompts have, by the size of the body, which has been read."""
    size: int = request.state.body_bytes
    return math.ceil(size / BYTES_A_TOKEN)


def over_limit(error: OverLimit) -> ApiError:
    """The error for a request beyond its tenant's limits."""
    wait = error.retry_after
    return ApiError(429, str(error), "rate_limit_error", "rate_limit_exceeded", None, wait)


class RateLimitHeaders:
    """Tells with every response to a metered request what its tenant has left by the minute."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and METERED in scope:
                headers = MutableHeaders(scope=message)
                standing = self._meters.standing(scope[METERED])
                for name, level in zip(standing._fields, standing, strict=True):
                    if level is not None:
                        headers.update(_headers(name, level))
            await send(message)

        await self.app(scope, receive, told)


def _headers(name: str, level: Level) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(level.limit),
        f"x-ratelimit-remaining-{name}": str(level.remaining),
        f"x-ratelimit-reset-{name}": duration(level.reset),
    }


def duration(seconds: float) -> str:
    """A time as OpenAI writes it, rounded up: ``20ms``, ``1.5s``, ``6m0s``, ``1h0m0s``."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
