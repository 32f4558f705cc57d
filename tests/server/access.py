"""What the tests of keys share: keys that are known, and requests that no client would send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from scheduler.tenant import Tenant
from server.access import Grants
from server.keys import MODE, Key, digest_of, keys_path

A, B, ADMIN, METRICS = "key-of-a", "key-of-b", "key-of-admin", "key-of-metrics"
TENANTS = (Tenant("a"), Tenant("b", priority="batch", trust_domain="lab"))


def key(text: str, name: str) -> Key:
    return Key(digest_of(text.encode()), name, "now")


def grants(*tenants: Tenant) -> Grants:
    keys = (key(A, "a"), key(B, "b"), key(ADMIN, "admin"), key(METRICS, "metrics"))
    return Grants(tenants or TENANTS, keys)


def write_keys(config: Path, *names: str) -> None:
    """Puts the keys ``key-of-NAME`` beside a settings file."""
    file = keys_path(config)
    digests = ((digest_of(f"key-of-{name}".encode()).hex(), name) for name in names)
    file.write_text("".join(f"sha256:{digest} {name} now\n" for digest, name in digests))
    file.chmod(MODE)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    *,
    client: tuple[str, int] | None = ("127.0.0.1", 1),
    body: bytes = b"",
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request whose path is taken as it is."""
    given = {"host": "localhost:8000", **(headers or {})}
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in given.items()],
        "client": client,
        "server": ("127.0.0.1", 8000),
    }
    sent: list[Message] = []
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:])


def routes_of(app: Any) -> list[Any]:
    """The route table inside all middleware."""
    while not hasattr(app, "routes"):
        app = app.app
    return list(app.routes)
