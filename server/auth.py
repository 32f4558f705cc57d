"""Lets requests in, or not: by key, or by where they come from while there are no keys."""

from __future__ import annotations

import ipaddress
from typing import cast
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler.tenant import DEFAULT, Tenant

from .access import Access, Identity
from .errors import ApiError, error_answer
from .keys import digest_of

TENANT = "commons.tenant"
OPEN = frozenset({"/livez", "/health", "/ready"})
METRICS = "/metrics"
CHALLENGE = {"www-authenticate": 'Bearer realm="mlx-commons"'}


def tenant_of(scope: Scope) -> Tenant:
    """For whom a request came, behind ``Authentication``; not on routes of operators."""
    return cast("Tenant", scope[TENANT])


class Authentication:
    """Answers what may not come in; nothing does without a key, but for probes, once keys exist.

    Decides on ``scope["path"]``, as the router does: the URL is also made of the Host header,
    which is the client's. What is not known to be open is closed.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._admit(scope)
            except ApiError as error:
                headers = CHALLENGE if error.status == 401 else {}
                await error_answer(scope, error, headers)(scope, receive, send)
                return
        elif scope["type"] != "lifespan":
            return  # there are no others, and a new kind is not to come in by this way
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Notes the tenant of a request that may come in. Raises ApiError 401, 403."""
        path: str = scope["path"]
        if path in OPEN or (path == "/" and scope["method"] == "HEAD"):
            return
        if not self._access.closed:
            if _administers(path):
                _check_local(scope)
            scope[TENANT] = DEFAULT
            return
        who = self._identify(scope)
        if _administers(path):
            _check(who.admin, "Administration takes the admin key.")
        elif path == METRICS:
            _check(who.metrics, "The metrics take the metrics key.")
        else:
            _check(who.tenant is not None, "This key is not a tenant's.")
            scope[TENANT] = who.tenant

    def _identify(self, scope: Scope) -> Identity:
        keys = _keys(scope)
        # All of them, whichever is known: how long this takes tells nothing.
        known = [self._access.identify(digest_of(key)) for key in keys]
        for who in known:
            if who is not None:
                return who
        if keys:
            message = "This API key is not known."
        else:
            message = "An API key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        raise ApiError(401, message, code="invalid_api_key")


def _administers(path: str) -> bool:
    return path == "/admin" or path.startswith("/admin/")


def _keys(scope: Scope) -> list[bytes]:
    """The keys that a request came with; some clients send a made-up one beside the real one."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    keys = [token if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b"")]
    return [key.strip() for key in keys if key.strip()]


def _check(allowed: bool, message: str) -> None:
    if not allowed:
        raise ApiError(403, message, "permission_error", "forbidden")


# without keys: administration from this machine alone


def _check_local(scope: Scope) -> None:
    """Lets in who asks from this machine, and is no web page. Raises ApiError 403.

    A page's script runs on this machine, too. Its browser sends the page's origin along, and
    the host name by which it got here: one that the page's owner has pointed to this machine.
    """
    client = scope.get("client")
    _check(
        client is not None and is_loopback(client[0]),
        "Administration is possible from this machine only, as long as there are no keys.",
    )
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    _check(
        len(hosts) == 1 and _names_loopback(hosts[0]),
        "Administration is possible under the name localhost only, as long as there are no keys.",
    )
    for name, value in scope["headers"]:
        if name == b"origin":
            origin = value.decode("latin-1").lower()
            same = (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}")
            _check(origin in same, "Administration is not possible from another site.")


def is_loopback(address: str) -> bool:
    """Whether an address, as text, is of this machine."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback


def _names_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or is_loopback(name)
