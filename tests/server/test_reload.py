"""Changed settings and keys, taken while requests run, or refused whole."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from scheduler.info import ServiceConfig
from scheduler.served import Catalogue
from scheduler.tenant import DEFAULT, Tenant
from server.access import Access, Grants
from server.config import ServerConfig
from server.keys import digest_of, keys_path, new_key, read_keys, revoke_key
from server.reload import Reloader
from server.settings_file import ConfigError

from .access import A, bearer, key
from .process import PATIENCE, Server, commons
from .support import completion, events

ROUTE = "/v1/completions"


def one_key(path: Path) -> str:
    """A new key of the tenant a; what was there before is revoked."""
    for old in read_keys(keys_path(path)):
        if old.name == "a":
            revoke_key(keys_path(path), old.id)
    return new_key(keys_path(path), "a")


class Running:
    """A server with settings of its own, and what makes its keys."""

    def __init__(self, server: Server, path: Path, admin: str) -> None:
        self.server = server
        self.path = path
        self.admin = admin
        self.http = httpx.Client(base_url=server.url, timeout=PATIENCE)

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def reload(self) -> httpx.Response:
        return self.http.post("/admin/reload", headers=bearer(self.admin))

    def status(self, secret: str) -> int:
        return self.http.get("/v1/models", headers=bearer(secret)).status_code


BASE = """
max-context = 2048
max-rows = 4
[tenants.a]
weight = 2
"""


@pytest.fixture(scope="module")
def running(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("reload") / "commons.toml"
    path.write_text(BASE)
    admin = new_key(keys_path(path), "admin")
    one_key(path)
    with Server("--model", tiny, "--config", str(path)) as server:
        running = Running(server.ready(), path, admin)
        yield running
        running.http.close()


@pytest.fixture(autouse=True)
def restored(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "running" in request.fixturenames:
        running = request.getfixturevalue("running")
        running.write(BASE)
        assert running.reload().status_code == 200


def test_signal_under_a_running_stream_drops_nothing(running: Running) -> None:
    old = one_key(running.path)
    assert running.reload().status_code == 200
    stream = completion(1500, stream=True)
    with running.http.stream("POST", ROUTE, json=stream, headers=bearer(old)) as response:
        assert response.status_code == 200
        data = events(response.iter_lines())
        seen = [next(data)]
        new = one_key(running.path)
        running.write(BASE + "[tenants.b]\n")
        running.server.signal(signal.SIGHUP)
        running.server.until("reloaded: 2 tenants, 2 keys; waiting for a restart: nothing")
        assert running.status(old) == 401, "revoked"
        assert running.status(new) == 200
        seen += data
    assert seen[-1] == "[DONE]"
    assert json.loads(seen[-2])["choices"][0]["finish_reason"] == "length"


def test_bad_file_is_refused_whole_at_a_signal(running: Running) -> None:
    secret = one_key(running.path)
    assert running.reload().status_code == 200
    one_key(running.path)  # which is not taken either
    running.write(BASE + "[tenants.b]\nweight = -1\n")
    running.server.signal(signal.SIGHUP)
    line = running.server.until("reload refused, the old settings stay: (.*)")[1]
    assert line == f"{running.path}:7: [tenants.b]: 'weight' is above 0, not -1"
    assert running.status(secret) == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tenants.b]\nmodels = ['zzz']", "{path}:7: [tenants.b]: there is no model 'zzz'"),
        ("[tenants.b]\n[tenants.b]", "{path}:7: "),
        ("colour = 3", "{path}:6: [tenants.a]: 'colour' is not a setting"),
        ("[colour]", "{path}:6: 'colour' is not a setting"),
        ("[[public]]\ntext = 3", "{path}:7: [[public]]: 'text' is a text"),
        ("[models.x]", "{path}:6: [models.x]: 'model' is missing"),
        ("[tenants.", "{path}:6: "),
    ],
)
def test_bad_file_is_answered_with_its_line(running: Running, text: str, said: str) -> None:
    running.write(BASE + text + "\n")
    answer = running.reload()
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_config"
    assert error["message"].startswith(said.format(path=running.path))
    assert error["message"].endswith("The old settings stay.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 70000\n", "{path}:1: --port: "),
        ("\nmax-queue = -1\n", "{path}:2: --max-queue: "),
        ("kv-memory = 'x'\n", "{path}:1: 'x' is not a size"),
    ],
)
def test_options_are_checked_as_at_a_start(running: Running, text: str, said: str) -> None:
    running.write(text + BASE)
    answer = running.reload()
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(said.format(path=running.path))


def test_bad_keys_are_answered_with_their_line(running: Running) -> None:
    file = keys_path(running.path)
    good = file.read_text()
    try:
        file.write_text(good + "nonsense\n")
        answer = running.reload()
        line = good.count("\n") + 1
        assert answer.json()["error"]["message"].startswith(f"{file}:{line}: this is no key")
        file.write_text(good)
        file.chmod(0o644)
        assert "chmod 600" in running.reload().json()["error"]["message"]
    finally:
        file.write_text(good)
        file.chmod(0o600)


def test_what_waits_for_a_restart_is_named(running: Running) -> None:
    running.write(
        "kv-memory = '8MB'\nhost = '127.0.0.1'\ndefault-max-tokens = 9\n"
        + BASE.replace("max-rows = 4", "max-rows = 5")
        + "[tenants.b]\n[models.later]\nmodel = 'some/later'\n[[public]]\ntext = 'x'\n"
    )
    done = running.reload().json()
    assert done["tenants"] == ["a", "b"]
    assert sorted(done["restart"]) == [
        "default-max-tokens",
        "kv-memory",
        "max-rows",
        "models",
        "public",
    ]
    assert running.reload().json() == done, "until it has come"


def test_revoked_last_key_leaves_nobody_in(running: Running) -> None:
    secret = one_key(running.path)
    assert running.reload().json()["keys"] == 2
    for old in read_keys(keys_path(running.path)):
        if old.name == "a":
            revoke_key(keys_path(running.path), old.id)
    running.write("")
    assert running.reload().json()["keys"] == 1
    running.server.until("no tenant has a key")
    for given in (secret, "anything"):
        assert running.status(given) == 401
    assert running.http.get("/v1/models").status_code == 401


def test_a_limit_is_another_one_from_then_on(running: Running) -> None:
    secret = one_key(running.path)
    running.write(BASE + "max_tokens = 3\n")
    running.reload()
    answer = running.http.post(ROUTE, json=completion(4), headers=bearer(secret))
    assert answer.json()["error"]["message"] == "max_tokens is 4; your limit is 3 tokens."
    running.write(BASE)
    running.reload()
    assert running.http.post(ROUTE, json=completion(4), headers=bearer(secret)).status_code == 200


def test_reload_in_an_open_server_that_would_lock_out_everybody(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "commons.toml"
    path.write_text("max-rows = 2\n")
    with (
        Server("--model", tiny, "--config", str(path)) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as http,
    ):
        path.write_text("max-rows = 2\n[tenants.a]\n")
        error = http.post("/admin/reload").json()["error"]
        assert f"commons keys new a --config {path}" in error["message"]
        assert http.get("/v1/models").status_code == 200
        ended = commons("keys", "new", "a", "--config", str(path))
        secret = ended.stdout.splitlines()[-1]
        assert http.post("/admin/reload").status_code == 200
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers=bearer(secret)).status_code == 200
        assert http.post("/admin/reload").status_code == 401


def test_signal_without_settings_file_changes_nothing(server: Server) -> None:
    server.signal(signal.SIGHUP)
    server.until("nothing to reload")
    assert httpx.get(f"{server.url}/v1/models").status_code == 200


def test_tenants_without_keys_do_not_start(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "commons.toml"
    path.write_text("[tenants.a]\n")
    ended = commons("serve", "--model", tiny, "--config", str(path))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith(f"`commons keys new a --config {path}`")


# the parts


def configured(*names: str, **more: Any) -> ServerConfig:
    tenants = tuple(Tenant(name) for name in names)
    grants = Grants(tenants, (key(A, "a"),))
    return ServerConfig(ServiceConfig("m", "m", tenants=grants.everybody), grants=grants, **more)


@pytest.mark.anyio
async def test_who_asked_is_told_of_changes() -> None:
    first = configured("a")
    access = Access(first.grants)
    told: list[tuple[Tenant, ...]] = []
    access.on_change(told.append)
    access.on_change(lambda tenants: told.append(access.tenants))
    fresh = [configured("a", "b")]
    done = await Reloader(first, access, fresh.pop, Catalogue([])).reload()
    assert done == (["a", "b"], 1, [])
    assert told == [(Tenant("a"), Tenant("b"))] * 2


@pytest.mark.anyio
async def test_a_refusal_changes_nothing() -> None:
    def refuses() -> ServerConfig:
        raise ConfigError("c.toml:1: no")

    first = configured("a")
    access = Access(first.grants)
    access.on_change(lambda tenants: pytest.fail("nothing changed"))
    reloader = Reloader(first, access, refuses, Catalogue([]))
    with pytest.raises(ConfigError, match=r"c\.toml:1: no"):
        await reloader.reload()
    await reloader.on_signal()
    assert access.grants is first.grants


@pytest.mark.anyio
async def test_files_are_read_off_the_event_loop() -> None:
    threads: list[Callable[[], Any]] = []

    def reread() -> ServerConfig:
        threads.append(threading.current_thread)
        assert threading.current_thread() is not threading.main_thread()
        return configured("a")

    first = configured("a")
    await Reloader(first, Access(first.grants), reread, Catalogue([])).reload()
    assert threads


def test_closed_stays_closed() -> None:
    access = Access(Grants(api_key=digest_of(b"k")))
    access.change(Grants())
    assert access.closed
    assert access.identify(digest_of(b"k")) is None
    assert access.tenants == (DEFAULT,)
    opened = Access(Grants())
    opened.change(replace(Grants(), api_key=digest_of(b"k")))
    assert opened.closed
