"""``commons doctor``: what it finds, how it says so, and that it always comes to an end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from huggingface_hub import constants

from engine import device, embedded
from engine.device import Device
from scheduler.info import ServiceConfig
from server import cli, doctor_config, doctor_files, doctor_machine
from server.config import ServerConfig
from server.doctor import as_object, examined, worst
from server.doctor_config import config_checks
from server.doctor_machine import sleep_finding, wired_finding
from server.finding import Finding, Named, ok, problem, warning
from server.keys import keys_path, new_key

from .process import COMMONS, PATIENCE, ROOT, Server, commons, environment

PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "40"}
GIB = 1 << 30
MAC = Device("Apple M4 Max", "metal", 64 * GIB, 48 * GIB)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "commons.toml"
    file.write_text("port = 0\n[tenants.a]\n")
    file.chmod(0o600)
    new_key(keys_path(file), "a")
    return file


def of_settings(path: Path | None) -> dict[str, Finding]:
    """What the checks of the settings find, in this process."""
    group: Any = typer.main.get_command(cli.app)
    return dict(examined(config_checks(group.commands["serve"], path)[1]))


def report(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """What the command prints for programs, and its exit code."""
    ended = commons("doctor", "--config", str(path), "--json", env=PLAIN)
    assert not ended.stderr
    told = json.loads(ended.stdout)
    assert told.keys() == {"version", "mlx_commons", "status", "checks"}
    assert told["version"] == 1
    for check in told["checks"]:
        assert check.keys() == {"name", "status", "message", "fix"}
        assert check["status"] in ("ok", "warning", "problem")
    return ended.returncode, {check.pop("name"): check for check in told["checks"]}


def test_a_sound_machine(config: Path) -> None:
    code, checks = report(config)
    assert code == 0
    names = {"python", "mlx", "memory", "disk", "open-files", "config", "keys", "models"}
    names |= {"model-disk", "port"}
    own = {"wired-limit", "sleep"} if sys.platform == "darwin" else {"blas"}
    assert checks.keys() == names | own
    assert not [name for name, check in checks.items() if check["status"] == "problem"]
    assert "1 tenants, 1 keys" in checks["config"]["message"]
    assert "GFLOP/s" in checks.get("blas", {"message": "GFLOP/s"})["message"]
    assert str(config.parent) in checks["disk"]["message"]
    assert f"{embedded.path()}: " in checks["model-disk"]["message"]


def test_it_says_what_a_start_would_say(config: Path) -> None:
    config.write_text("port = 0\nmax-rows = 0\n")
    said = commons("serve", "--config", str(config), env=PLAIN).stderr
    code, checks = report(config)
    assert code == 1
    assert checks["config"]["status"] == "problem"
    assert checks["config"]["message"] in said
    assert f"{config}:2: " in checks["config"]["message"]
    assert "port" not in checks


def test_what_it_says_mends(config: Path) -> None:
    file = keys_path(config)
    file.chmod(0o644)
    code, checks = report(config)
    assert (code, checks["keys"]["status"]) == (1, "problem")
    assert checks["keys"]["fix"] == f"chmod 600 {file}"
    subprocess.run(checks["keys"]["fix"], shell=True, check=True)
    assert {found.status for found in of_settings(config).values()} == {"ok"}


def test_it_is_read_without_a_terminal(config: Path) -> None:
    config.write_text(f'port = 0\nmodel = "{config.parent}/absent"\n')
    ended = commons("doctor", env=PLAIN | {"COMMONS_CONFIG": str(config)})
    assert ended.returncode == 1
    *lines, sums = ended.stdout.splitlines()
    assert sums.endswith(" 1 problems")
    assert all(line.startswith(("ok ", "warning ", "problem ", "   ")) for line in lines)
    (said,) = (line for line in lines if line.startswith("problem"))
    assert said.split()[1] == "models"
    assert f"there is no {config.parent}/absent" in said
    assert f"mend: ls {config.parent}" in lines[lines.index(said) + 1]
    assert "\x1b" not in ended.stdout


def test_a_low_limit_of_open_files_is_found(config: Path) -> None:
    command = f"ulimit -n 200; exec {' '.join(COMMONS)} doctor --json --config {config}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment(PLAIN),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    checks = {check["name"]: check for check in json.loads(ended.stdout)["checks"]}
    assert ended.returncode == 1
    assert checks["open-files"]["status"] == "problem"
    assert "at most 200 at once" in checks["open-files"]["message"]
    assert "4096" in checks["open-files"]["fix"]
    assert checks["mlx"]["status"] == "ok", "the rest is checked all the same"


def test_more_places_than_open_files() -> None:
    settings = ServerConfig(ServiceConfig("m", "m", max_queue=5000))
    assert doctor_machine.open_files(4096, settings).status == "warning"
    assert doctor_machine.open_files(4096, None).status == "ok"


@pytest.mark.parametrize(
    ("text", "name", "status", "said"),
    [
        ("[tenants.b]", "config", "problem", "nobody could be served"),
        ('host = "0.0.0.0"', "config", "problem", "lets other machines in"),
        ('host = "0.0.0.0"\napi-key = "k"', "config", "ok", "1 tenants"),
        ('host = "0.0.0.0"\nallow-unauthenticated = true', "config", "warning", "without keys"),
        ('host = "256.0.0.1"\napi-key = "k"', "port", "problem", "256.0.0.1:0: "),
        ('model = "{0}"', "models", "problem", "has no config.json"),
        ('adapter = ["x={0}/no"]', "models", "problem", "adapter 'x': there is no"),
        ('draft-model = "{0}/no"', "models", "problem", "the draft of"),
        ('[models.c]\nmodel = "{0}/no"', "models", "problem", "model 'c': there is no"),
        ('model = "org/name"', "models", "ok", "org/name: fetched"),
        ('model = "org/name"', "hub", "ok", "org/name: to be fetched"),
    ],
)
def test_settings(tmp_path: Path, text: str, name: str, status: str, said: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text("port = 0\n" + text.format(tmp_path))
    file.chmod(0o600)
    found = of_settings(file)[name]
    assert (found.status, said in found.message) == (status, True), found
    assert status != "problem" or name == "config" or found.fix


def test_a_file_with_a_key_is_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('port = 0\napi-key = "secret"\n')
    file.chmod(0o644)
    assert of_settings(file)["keys"].fix == f"chmod 600 {file}"
    file.write_text("port = 0\n")
    file.chmod(0o666)
    found = of_settings(file)["keys"]
    assert (found.status, found.fix) == ("warning", f"chmod go-w {file}")


def test_a_server_of_ours_has_the_port(server: Server) -> None:
    number = int(server.url.rpartition(":")[2])
    found = doctor_config.port("127.0.0.1", number)
    assert found == ok(f"a server runs at 127.0.0.1:{number}, and is well")


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_server_has_room_for_its_connections(server: Server) -> None:
    limits = Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
    (files,) = (line.split() for line in limits if line.startswith("Max open files"))
    assert files[3:5] == ["4096", "4096"]


class Other(BaseHTTPRequestHandler):
    """A program that is not ours, or one of ours that is unwell."""

    body = b"{}"

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def other() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{}", "another program"),
        (b"[]", "another program"),
        (b"<html>", "another program"),
        (b'{"status": "engine hung", "heartbeat_age_seconds": 99}', "not well: engine hung"),
    ],
)
def test_somebody_else_has_the_port(
    other: int, monkeypatch: pytest.MonkeyPatch, body: bytes, said: str
) -> None:
    monkeypatch.setattr(Other, "body", body)
    found = doctor_config.port("127.0.0.1", other)
    assert (found.status, said in found.message) == ("problem", True)
    assert f"lsof -nP -iTCP:{other}" in (found.fix or "")


def test_one_who_never_answers_has_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_config, "ASK", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = doctor_config.port("127.0.0.1", silent.getsockname()[1])
    assert "another program" in found.message


def test_a_check_that_hangs_or_fails_is_a_problem() -> None:
    def fails() -> Finding:
        raise OSError("gone")

    never = threading.Event()

    def hangs() -> Finding:
        never.wait()
        return ok("too late")

    found = dict(examined([Named("a", hangs, 0.05), Named("b", fails), Named("c", lambda: ok(""))]))
    never.set()
    assert found["a"].message == "no answer within 0 s"
    assert found["b"].message == "could not be checked: OSError: gone"
    assert [f.status for f in found.values()] == ["problem", "problem", "ok"]


def test_the_worst_counts() -> None:
    assert worst([]) == "ok"
    assert worst([("a", ok("")), ("b", warning(""))]) == "warning"
    assert as_object([("a", warning("")), ("b", problem("x", "y"))])["status"] == "problem"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    found = doctor_machine.disk(tmp_path / "absent")
    assert (found.status, found.fix) == ("problem", f"ls -ld {tmp_path}/absent")


def weights(folder: Path, nbytes: int) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "model.safetensors"
    file.write_bytes(os.urandom(nbytes))
    return file


def test_how_fast_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = weights(tmp_path / "m", 3 * doctor_files.CHUNK + 100)
    assert 1e6 < doctor_files.read_speed(file) < 1e12
    found = doctor_files.disks([file.parent])
    assert f"{file.parent}: " in found.message and "/s read" not in found.message
    monkeypatch.setattr(doctor_files, "LEAST_TOLD", 1)
    weights(tmp_path / "small", 10)
    found = doctor_files.disks([tmp_path / "small", file.parent])
    assert "s for model.safetensors" in found.message, "the largest file tells"
    assert "small" not in found.message, "a disk is told once"
    monkeypatch.setattr(doctor_files, "SLOW_READ", 1e15)
    found = doctor_files.disks([file.parent])
    assert (found.status, found.message.endswith("slow")) == ("warning", True)
    assert (found.fix or "").startswith(f"cp -R {file.parent} ")


def test_no_room_beside_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_files, "LEAST_FREE", 1e30)
    weights(tmp_path / "m", 10)
    found = doctor_files.disks([tmp_path / "m"])
    assert (found.status, found.fix) == ("warning", f"df -h {tmp_path / 'm'}")
    assert doctor_files.disks([]).status == "ok"


def test_weights_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_files, "LEAST_TOLD", 0)
    folder = tmp_path / "model.safetensors"  # in the place of a file
    folder.mkdir()
    found = doctor_files.disks([tmp_path])
    assert (found.status, found.fix) == ("problem", f"ls -l {folder}")
    assert "cannot be read: is a directory" in found.message


def test_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor_files, "LEAST_FETCH", 0)
    found = doctor_files.hub(["org/name"])
    assert (found.status, f"to be fetched into {cache}" in found.message) == ("ok", True)
    monkeypatch.setattr(doctor_files, "LEAST_FETCH", 1e30)
    found = doctor_files.hub(["org/name"])
    assert (found.status, "HF_HOME" in (found.fix or "")) == ("warning", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = doctor_files.hub(["org/name"])
    assert (found.status, found.fix) == ("problem", "HF_HUB_OFFLINE=0 hf download org/name")
    snapshot = cache / "models--org--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cache / "models--org--name" / "refs").mkdir()
    (cache / "models--org--name" / "refs" / "main").write_text("0123")
    found = doctor_files.hub(["org/name"])
    assert (found.status, str(snapshot) in found.message) == ("ok", True), found


def test_more_memory_than_there_is() -> None:
    memory = device.describe().memory
    assert doctor_machine.memory(memory + 1).status == "problem"
    assert doctor_machine.memory(memory - 1).status == "warning"
    assert "the settings take" not in doctor_machine.memory(0).message


def test_needed_memory_is_that_of_weights_and_kv(tiny: str) -> None:
    weights = sum(f.stat().st_size for f in Path(tiny).glob("*.safetensors"))
    assert weights > 0
    settings = ServerConfig(ServiceConfig(tiny, "m", kv_memory=1000))
    assert doctor_machine.needed_memory(settings) == weights + 1000
    assert doctor_machine.needed_memory(None) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac has Accelerate")
def test_the_slow_blas_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "openblas", lambda: None)
    found = doctor_machine.blas()
    assert found.status == "warning"
    assert "LD_PRELOAD=" in (found.fix or "")
    monkeypatch.setattr(device, "openblas", lambda: Path("libblas.so.3"))
    monkeypatch.setattr(device, "openblas_core", lambda _: "Haswell")
    assert doctor_machine.blas().message.startswith("OpenBLAS for Haswell: ")
    monkeypatch.setattr(device, "openblas_core", lambda _: "Prescott")
    monkeypatch.setattr(doctor_machine, "_cpu_flags", lambda: "avx avx2")
    assert doctor_machine.blas().fix == "export OPENBLAS_CORETYPE=Haswell"


@pytest.mark.parametrize(
    ("limit", "needed", "status", "command"),
    [
        (0, 0, "ok", None),
        (0, 40 * GIB, "ok", None),
        (0, 50 * GIB, "warning", f"sudo sysctl iogpu.wired_limit_mb={52 * 1024}"),
        (0, 55 * GIB, "warning", f"sudo sysctl iogpu.wired_limit_mb={56 * 1024}"),
        (60 * 1024, 0, "warning", f"sudo sysctl iogpu.wired_limit_mb={56 * 1024}"),
        (56 * 1024, 40 * GIB, "ok", None),
        (None, 0, "warning", "sysctl iogpu.wired_limit_mb"),
    ],
)
def test_the_wired_limit(limit: int | None, needed: int, status: str, command: str | None) -> None:
    found = wired_finding(limit, MAC, needed)
    assert (found.status, found.fix) == (status, command)


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        (" standby   0\n sleep                1 (sleep prevented by caffeinate)\n", "warning"),
        (" disksleep            10\n sleep                0\n displaysleep  2\n", "ok"),
        (" displaysleep 10\n", "warning"),
    ],
)
def test_a_mac_that_sleeps(shown: str, status: str) -> None:
    assert sleep_finding(shown).status == status


def test_what_a_mac_alone_has_is_not_there_elsewhere() -> None:
    if sys.platform != "darwin":
        assert device.wired_limit() is None
