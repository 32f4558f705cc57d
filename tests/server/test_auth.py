"""Who gets in: by which key, to which route, from where; and that nobody else does."""

from __future__ import annotations

import hmac
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI
from starlette.types import Scope

from scheduler.tenant import DEFAULT
from server.access import Access, Grants, Identity
from server.auth import Authentication, tenant_of
from server.keys import digest_of
from server.settings_file import ConfigError

from .access import ADMIN, METRICS, TENANTS, A, B, ask, bearer, grants, key, routes_of
from .process import PATIENCE, Server, commons
from .scripted import Scripted

pytestmark = pytest.mark.anyio

PROBES = {"/livez", "/health", "/ready"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get", "")
NO_KEYS: tuple[dict[str, str], ...] = (
    {},
    bearer("wrong"),
    {"x-api-key": ""},
    {"authorization": "Basic YTpi"},
)
ONE_KEY = "the-one-key"


@pytest.fixture
def service() -> Scripted:
    return Scripted(grants())


def paths_of(service: Scripted) -> list[str]:
    """The paths of the application's own route table, parameters filled in."""
    return sorted({re.sub(r"\{[^}]*\}", "m", route.path) for route in routes_of(service.app)})


def odd(path: str) -> list[str]:
    """Ways to write a path that a careless check might take for another one."""
    return [
        path,
        f"{path}/",
        f"/{path}",
        f"{path}//",
        f"{path};/livez",
        f"{path}%2f",
        f"{path}\0",
        f"{path}\n/livez",
        f"/livez/..{path}",
        f"/livez{path}",
        f"/.{path}",
        path.upper(),
        path.removeprefix("/"),
        f"{path}?/livez",
        f"{path}#/livez",
        f"http://localhost{path}",
    ]


async def test_every_route_needs_a_key(service: Scripted) -> None:
    known = paths_of(service)
    assert len(known) > 10
    paths = [path for route in known for path in odd(route)]
    paths += ["/", "", "*", "/nowhere", "/livez/", "//livez", "/LIVEZ", "/v1/messages", "\ud800"]
    for path in set(paths) - PROBES:
        for method in METHODS:
            if (method, path) == ("HEAD", "/"):
                continue  # tells no more than that there is a server
            for headers in (
                {},
                bearer("wrong"),
                {"x-api-key": ""},
                {"authorization": "Basic YTpi"},
            ):
                status, answered, _ = await ask(service.app, method, path, headers)
                assert status == 401, (method, path, headers)
                assert answered["www-authenticate"].startswith("Bearer")
                assert answered["x-request-id"]
    assert not service.requests


async def test_probes_need_none(service: Scripted) -> None:
    for path in PROBES:
        assert (await ask(service.app, "GET", path))[0] == 200
        assert (await ask(service.app, "GET", path, bearer("wrong")))[0] == 200
        assert (await ask(service.app, "DELETE", path))[0] == 405


@pytest.mark.parametrize(
    "headers",
    [
        bearer(A),
        {"authorization": f"bearer   {A} "},
        {"x-api-key": A},
        {"x-api-key": A, "authorization": "Bearer made-up"},
        {"x-api-key": "made-up", "authorization": f"Bearer {A}"},
        {"x-api-key": A, "authorization": "Basic YTpi"},
    ],
)
async def test_a_key_comes_in_either_header(service: Scripted, headers: dict[str, str]) -> None:
    assert (await ask(service.app, "GET", "/v1/models", headers))[0] == 200
    assert (await ask(service.app, "GET", "/nowhere", headers))[0] == 404
    assert (await ask(service.app, "POST", "/v1/models", headers))[0] == 405


@pytest.mark.parametrize(
    "headers",
    [
        bearer(A[:-1]),
        bearer(A + "x"),
        bearer(A.upper()),
        bearer(digest_of(A.encode()).hex()),
        {"authorization": A},
        {"authorization": f"Basic {A}"},
        {"cookie": A},
        {"x-api-key": "\u00fc"},
    ],
)
async def test_what_is_no_key(service: Scripted, headers: dict[str, str]) -> None:
    assert (await ask(service.app, "GET", "/v1/models", headers))[0] == 401


async def test_errors_have_the_clients_own_shape(service: Scripted) -> None:
    status, _, body = await ask(service.app, "POST", "/v1/chat/completions", bearer("wrong"))
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (status, error["type"], error["code"]) == (
        401,
        "invalid_request_error",
        "invalid_api_key",
    )
    assert "wrong" not in error["message"]
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        status, headers, body = await ask(service.app, "POST", path)
        answer = json.loads(body)
        assert (status, answer["type"]) == (401, "error")
        assert answer["error"]["type"] == "authentication_error"
        assert answer["request_id"] == headers["request-id"] == headers["x-request-id"]
        status, _, body = await ask(service.app, "POST", path, bearer(ADMIN))
        assert (status, json.loads(body)["error"]["type"]) == (403, "permission_error")


async def test_operators_keys_open_what_they_are_for(service: Scripted) -> None:
    expected = {
        ("GET", "/v1/models"): {A: 200, B: 200, ADMIN: 403, METRICS: 403},
        ("POST", "/v1/completions"): {A: 415, ADMIN: 403, METRICS: 403},
        ("GET", "/metrics"): {A: 403, B: 403, ADMIN: 200, METRICS: 200},
        ("POST", "/admin/reload"): {A: 403, B: 403, ADMIN: 400, METRICS: 403},
        ("GET", "/admin"): {A: 403, ADMIN: 404, METRICS: 403},
        ("GET", "/admin/nowhere"): {A: 403, ADMIN: 404, METRICS: 403},
        ("GET", "/administration"): {A: 404, ADMIN: 403},
        ("GET", "/metrics/"): {A: 404, METRICS: 403},
    }
    for (method, path), statuses in expected.items():
        for secret, wanted in statuses.items():
            # The admin key opens from anywhere, by whatever name, and to pages of other sites.
            headers = bearer(secret) | {"host": "ai.example", "origin": "https://console.example"}
            client = ("203.0.113.9", 1)
            status, _, body = await ask(service.app, method, path, headers, client=client)
            assert status == wanted, (method, path, secret)
            if wanted == 403:
                assert json.loads(body)["error"]["code"] == "forbidden"


async def test_the_one_key_opens_everything() -> None:
    service = Scripted(Grants(api_key=digest_of(ONE_KEY.encode())))
    for path in ("/v1/models", "/metrics"):
        assert (await ask(service.app, "GET", path, bearer(ONE_KEY)))[0] == 200
        assert (await ask(service.app, "GET", path))[0] == 401
    reload = await ask(service.app, "POST", "/admin/reload", bearer(ONE_KEY))
    assert json.loads(reload[2])["error"]["code"] == "no_config"
    assert service.access.tenants == (DEFAULT,)


async def test_without_keys_any_credential_is_ignored() -> None:
    service = Scripted()
    for headers in ({}, bearer("none"), {"x-api-key": "x"}, {"authorization": "Basic YTpi"}):
        assert (await ask(service.app, "GET", "/v1/models", headers))[0] == 200
        assert (await ask(service.app, "GET", "/metrics", headers))[0] == 200


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        (("127.0.0.1", 1), {}, 400),
        (("127.8.8.8", 1), {"host": "127.0.0.1"}, 400),
        (("::1", 1), {"host": "[::1]:8000"}, 400),
        (("::ffff:127.0.0.1", 1), {"host": "LOCALHOST"}, 400),
        (("127.0.0.1", 1), {"origin": "http://localhost:8000"}, 400),
        (("192.168.1.7", 1), {}, 403),
        (("::ffff:192.168.1.7", 1), {}, 403),
        (("localhost", 1), {}, 403),
        (None, {}, 403),
        (("127.0.0.1", 1), {"host": "rebound.example"}, 403),
        (("127.0.0.1", 1), {"host": "localhost.rebound.example"}, 403),
        (("127.0.0.1", 1), {"host": "127.0.0.1.rebound.example:8000"}, 403),
        (("127.0.0.1", 1), {"host": "user@rebound.example"}, 403),
        (("127.0.0.1", 1), {"host": "[::1"}, 403),
        (("127.0.0.1", 1), {"host": ""}, 403),
        (("127.0.0.1", 1), {"origin": "http://localhost:3000"}, 403),
        (("127.0.0.1", 1), {"origin": "https://evil.example"}, 403),
        (("127.0.0.1", 1), {"origin": "null"}, 403),
    ],
)
async def test_administration_without_keys_is_for_this_machine(
    client: tuple[str, int] | None, headers: dict[str, str], status: int
) -> None:
    service = Scripted()
    found, _, body = await ask(service.app, "POST", "/admin/reload", headers, client=client)
    assert found == status
    assert json.loads(body)["error"]["code"] == ("no_config" if status == 400 else "forbidden")
    assert (await ask(service.app, "GET", "/v1/models", headers, client=client))[0] == 200


async def test_all_keys_are_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared[-1] += 1
        assert len(a) == len(b) == 32
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    access = Access(grants())
    for secret in (A, B, METRICS, "wrong"):
        compared.append(0)
        access.identify(digest_of(secret.encode()))
    assert compared == [4, 4, 4, 4]


async def test_a_tenant_without_a_table_is_nobody() -> None:
    """A key whose tenant has left the settings opens nothing, and takes no other's place."""
    service = Scripted(Grants(TENANTS[:1], (key(A, "a"), key(B, "b"))))
    assert service.access.grants.orphans == ("b",)
    assert (await ask(service.app, "GET", "/v1/models", bearer(B)))[0] == 403


async def test_other_kinds_of_connections_stay_out() -> None:
    reached: list[Scope] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        reached.append(scope)

    guard = Authentication(app, Access(Grants()))
    for kind in ("websocket", "lifespan", "unheard-of"):
        await guard({"type": kind, "path": "/livez"}, None, None)  # type: ignore[arg-type]
    assert [scope["type"] for scope in reached] == ["lifespan"]


async def test_routes_learn_the_tenant() -> None:
    reached: list[Scope] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        reached.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    access = Access(grants())
    guard = Authentication(app, access)
    await ask(guard, "GET", "/v1/models", bearer(B))
    assert tenant_of(reached[-1]) is TENANTS[1]
    for path, secret in (("/livez", ""), ("/metrics", METRICS), ("/admin/x", ADMIN)):
        await ask(guard, "GET", path, bearer(secret))
        with pytest.raises(KeyError):
            tenant_of(reached[-1])


def test_grants() -> None:
    open_ = Grants()
    assert (open_.closed, open_.everybody, open_.keyless) == (False, (DEFAULT,), False)
    assert Grants(TENANTS).keyless
    assert Grants(TENANTS, api_key=digest_of(b"k")).everybody == (*TENANTS, DEFAULT)
    named = Grants((), (key(A, "default"),))
    assert (named.closed, named.everybody) == (True, (DEFAULT,))
    assert list(named.doors()) == [(digest_of(A.encode()), Identity(DEFAULT))]
    with pytest.raises(ConfigError, match="one of each"):
        Grants(TENANTS, (key(A, "a"),), digest_of(A.encode()))


# a real server


@pytest.fixture(scope="module")
def keyed(tiny: str) -> Iterator[Server]:
    with Server("--model", tiny, env={"COMMONS_API_KEY": ONE_KEY}) as server:
        yield server.ready()


def raw(server: Server, request: str) -> bytes:
    """The first line of the answer to ``request``, sent as it is."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), PATIENCE) as connection:
        connection.sendall(request.encode("latin-1"))
        with connection.makefile("rb") as answer:
            return answer.readline()


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/models",
        "GET //v1/models",
        "GET /v1//models",
        "GET /%76%31/models",
        "GET /livez/../v1/models",
        "GET /livez%2f..%2fv1/models",
        "GET /v1/models?x=/livez",
        "GET /v1/models#/livez",
        "GET http://localhost/v1/models",
        "GET //livez",
        "OPTIONS *",
        "OPTIONS /v1/chat/completions",
        "HEAD /v1/models",
        "PROPFIND /v1/models",
        "POST /admin/reload",
        "GET /metrics",
    ],
)
@pytest.mark.parametrize("host", ["localhost", "x/livez?", "localhost/health#"])
def test_no_spelling_gets_past_a_real_server(keyed: Server, line: str, host: str) -> None:
    answer = raw(keyed, f"{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
    assert answer.split()[1] in (b"401", b"400"), answer
    if host == "localhost" and line != "OPTIONS *":
        assert answer.split()[1] == b"401"


def test_real_server_with_one_key(keyed: Server) -> None:
    with httpx.Client(base_url=keyed.url, timeout=PATIENCE) as http:
        assert http.get("/ready").status_code == 200
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers=bearer(ONE_KEY)).status_code == 200
        assert http.get("/metrics", headers={"x-api-key": ONE_KEY}).status_code == 200
        assert http.get("/admin/models", headers=bearer(ONE_KEY)).status_code == 200
        # The body of a refused request is not waited for.
        big = b"x" * (1 << 20)
        assert http.post("/v1/completions", content=big).status_code == 401


def test_openai_client_with_and_without_the_key(keyed: Server) -> None:
    with OpenAI(base_url=f"{keyed.url}/v1", api_key=ONE_KEY, max_retries=0) as client:
        (model,) = client.models.list()
    with (
        OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(AuthenticationError) as error,
    ):
        client.completions.create(model=model.id, prompt="x")
    assert error.value.code == "invalid_api_key"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_not_let_in_without_keys(tiny: str, host: str) -> None:
    ended = commons("serve", "--model", tiny, "--host", host, "--port", "0")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"commons serve: --host {host} lets other machines in")
    assert "--allow-unauthenticated" in last
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("option", [("--allow-unauthenticated",), ("--api-key", ONE_KEY)])
def test_other_machines_are_let_in_when_told_so(tiny: str, option: tuple[str, ...]) -> None:
    with Server("--model", tiny, "--host", "0.0.0.0", *option) as server:
        url = server.ready().url.replace("0.0.0.0", "127.0.0.1")
        headers = bearer(ONE_KEY) if len(option) > 1 else {}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
