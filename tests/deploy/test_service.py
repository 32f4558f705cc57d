"""Files that make a service of the server: they are sound, and what they start works."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.config import ServerConfig
from tests.server.process import PATIENCE, ROOT, environment

LAUNCHD, SYSTEMD = ROOT / "deploy/launchd", ROOT / "deploy/systemd"
CONTAINERFILE = ROOT / "deploy/Containerfile"
SCRIPTS = sorted(LAUNCHD.glob("*.sh"))
LABEL = "mlx-commons.server"
DRAIN = ServerConfig.__dataclass_fields__["drain_timeout"].default
BASH = shutil.which("bash")


class Place:
    """A folder to install below, and a command to install."""

    def __init__(self, path: Path) -> None:
        self.root = path / "root & <all> | of 'it'"
        self.home = path / "home"
        self.home.mkdir()
        self.commons = path / "bin & more" / "commons"
        self.commons.parent.mkdir()
        run = f'cd "{ROOT}" && exec "{sys.executable}" -m server.cli "$@"'
        self.commons.write_text(f"#!/bin/sh\n{run}\n")
        self.commons.chmod(0o755)

    def run(self, script: str, *args: str, path: Path | None = None) -> list[str]:
        """What a script says; it must succeed."""
        ended = self.attempt(script, *args, path=path)
        assert ended.returncode == 0, ended.stderr
        assert not ended.stderr
        return ended.stdout.splitlines()

    def attempt(
        self, script: str, *args: str, path: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        found = os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"
        return subprocess.run(
            [str(BASH), str(LAUNCHD / script), *args],
            env={"PATH": found, "HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def install(self, kind: str, *more: str) -> list[str]:
        where = ("--prefix", str(self.root), "--commons", str(self.commons))
        return self.run("install.sh", kind, *where, *more)

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Content and time of every file."""
        return {
            str(p.relative_to(self.root)): (p.read_bytes(), p.stat().st_mtime_ns)
            for p in self.root.rglob("*")
            if p.is_file()
        }

    def plist(self, name: str = LABEL) -> dict[str, Any]:
        (path,) = self.root.rglob(f"{name}.plist")
        with path.open("rb") as file:
            found: dict[str, Any] = plistlib.load(file)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("name", ["agent", "daemon", "wired-limit"])
def test_templates_are_property_lists(name: str) -> None:
    with (LAUNCHD / f"{name}.plist").open("rb") as file:
        found = plistlib.load(file)
    assert found["Label"].startswith("mlx-commons.")
    assert found["RunAtLoad"] is True


@pytest.mark.parametrize("kind", ["agent", "daemon"])
def test_what_launchd_is_told(place: Place, kind: str) -> None:
    owner = ("--user", "nobody") if kind == "daemon" else ()
    place.install(kind, "--config", "/etc/a & b/c.toml", *owner)
    found = place.plist()
    command, *args = found["ProgramArguments"]
    assert command == str(place.commons)
    assert args[:4] == ["serve", "--config", "/etc/a & b/c.toml", "--log-file"]
    assert found["KeepAlive"] is True
    assert found["ExitTimeOut"] > DRAIN
    assert found["ThrottleInterval"] >= 10
    assert found["ProcessType"] == "Interactive"
    assert found["HardResourceLimits"]["NumberOfFiles"] >= 4096
    assert found.get("UserName") == ("nobody" if kind == "daemon" else None)
    assert "@" not in json.dumps(found)
    log = Path(args[4])
    assert log.parent == Path(found["StandardErrorPath"]).parent
    assert (place.root / log.parent.relative_to("/")).is_dir()
    (rotated,) = place.root.rglob("newsyslog.d/*")
    (line,) = (x for x in rotated.read_text().splitlines() if not x.startswith("#"))
    file, owned, mode, count, size, when, flags = line.split()
    assert file == str(log)
    assert owned.startswith("nobody:" if kind == "daemon" else "")
    assert (mode, int(count) > 0, int(size) > 0, when, flags) == ("640", True, True, "*", "JN")


@pytest.mark.parametrize("kind", ["agent", "daemon"])
def test_again_changes_nothing_and_no_settings_ever(place: Place, kind: str) -> None:
    more = ("--user", "nobody", "--wired-limit", "50000") if kind == "daemon" else ()
    place.install(kind, *more)
    (settings,) = place.root.rglob("commons.toml")
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    settings.write_text("port = 9\n")
    before = place.files()
    said = place.install(kind, *more)
    assert place.files() == before
    assert all(line.startswith(("as it is: ", "kept: ", "check it: ")) for line in said)
    if kind == "daemon":
        place.install(kind, *more[:-1], "60000")
        changed = {name for name, found in place.files().items() if before.get(name) != found}
        assert {Path(name).name for name in changed} == {"mlx-commons.wired-limit.plist"}
        arguments = place.plist("mlx-commons.wired-limit")["ProgramArguments"]
        assert arguments == ["/usr/sbin/sysctl", "iogpu.wired_limit_mb=60000"]


@pytest.mark.parametrize("kind", ["agent", "daemon"])
def test_a_dry_run_says_what_the_real_one_does(place: Place, kind: str) -> None:
    owner = ("--user", "nobody") if kind == "daemon" else ()
    said = place.install(kind, "--dry-run", *owner)
    assert not place.root.exists()
    would = {line.removeprefix("would write: ") for line in said if "would write: " in line}
    place.install(kind, *owner)
    assert would == {str(place.root / name) for name in place.files()}
    before = place.files()
    place.run("uninstall.sh", kind, "--prefix", str(place.root), "--dry-run")
    assert place.files() == before


@pytest.mark.parametrize("kind", ["agent", "daemon"])
def test_what_is_taken_out_leaves_settings_and_logs(place: Place, kind: str) -> None:
    more = ("--user", "nobody", "--wired-limit", "50000") if kind == "daemon" else ()
    place.install(kind, *more)
    (settings,) = place.root.rglob("commons.toml")
    for _ in range(2):
        said = place.run("uninstall.sh", kind, "--prefix", str(place.root))
        assert [place.root / name for name in place.files()] == [settings]
    assert said[-1].startswith("kept: ")
    assert str(settings.parent) in said[-1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "agent or daemon?"),
        (("both",), "unknown argument: both"),
        (("agent", "--commons"), "--commons takes a value"),
        (("agent", "--commons", "/no/such"), "/no/such is no command"),
        (("agent", "--wired-limit", "9"), "takes a daemon"),
        (("daemon", "--wired-limit", "9; rm"), "a number of MiB"),
        (("daemon", "--user", "no such user"), "there is no user no such user"),
        (("daemon",), "give --user NAME"),
    ],
)
def test_what_cannot_be_is_refused(place: Place, args: tuple[str, ...], said: str) -> None:
    commons = () if "--commons" in args else ("--commons", str(place.commons))
    ended = place.attempt("install.sh", "--prefix", str(place.root), *commons, *args)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert not place.root.exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="there is a launchd")
def test_without_launchd_there_is_nothing_to_install_for(place: Place) -> None:
    user = ("--user", "nobody", "--commons", str(place.commons))
    ended = place.attempt("install.sh", "daemon", *user)
    assert "launchd is macOS's" in ended.stderr


@pytest.mark.parametrize("loaded", [True, False])
def test_launchd_is_asked_to_start_and_to_stop(place: Place, tmp_path: Path, loaded: bool) -> None:
    """On a machine that claims to be a Mac, as far as the scripts can tell."""
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for name, does in (("uname", "echo Darwin"), ("launchctl", f"exit {int(not loaded)}")):
        (fakes / name).write_text(f"#!/bin/sh\n{does}\n")
        (fakes / name).chmod(0o755)
    user = ("--user", "nobody", "--commons", str(place.commons), "--dry-run")
    said = place.run("install.sh", "daemon", *user, path=fakes)
    plist = f"/Library/LaunchDaemons/{LABEL}.plist"
    stop, start = f"launchctl bootout system/{LABEL}", f"launchctl bootstrap system {plist}"
    asked = [x.removeprefix("would run: ") for x in said if "launchctl" in x]
    assert asked == ([stop, start] if loaded else [start])
    said = place.run("uninstall.sh", "daemon", "--dry-run", path=fakes)
    assert (f"would run: {stop}" in said) == loaded


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run([str(BASH), "-n", str(script)], check=True)
    text = script.read_text()
    newer = r"declare -A|mapfile|readarray|\$\{\w+(,,|\^\^|@)"
    assert not re.search(newer, text), "not in bash 3.2"
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "-e", "SC1091,SC2034,SC2154", str(script)], check=True)


class Installed:
    """The server as launchd would start it."""

    def __init__(self, place: Place) -> None:
        place.install("agent")
        found = place.plist()
        (settings,) = place.root.rglob("commons.toml")
        settings.write_text("port = 0\n")
        command, serve, config, _, file, log = found["ProgramArguments"]
        self.log = place.root / log.lstrip("/")  # what is named there lies below the prefix here
        args = [command, serve, config, str(settings), file, str(self.log)]
        self.process = subprocess.Popen(args, env=environment())

    def url(self) -> str:
        """Where it listens, once it does."""
        end = time.monotonic() + PATIENCE
        while "ready at " not in (text := self.log.read_text() if self.log.exists() else ""):
            assert self.process.poll() is None
            assert time.monotonic() < end, text
            time.sleep(0.05)
        return text.partition("ready at ")[2].split()[0]


@pytest.fixture
def installed(place: Place) -> Iterator[Installed]:
    installed = Installed(place)
    yield installed
    installed.process.kill()
    installed.process.wait()


def healthcheck() -> list[str]:
    """The command by which a container's health is checked."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.*\])$", text, re.MULTILINE)
    command: list[str] = json.loads(line)
    return command


def test_what_is_installed_serves_and_ends_at_a_signal(installed: Installed) -> None:
    port = installed.url().rpartition(":")[2]
    program, *args = healthcheck()
    assert program == "python"
    check = [sys.executable, *args]
    env = environment({"COMMONS_PORT": port})
    assert subprocess.run(check, env=env, timeout=PATIENCE).returncode == 0
    installed.process.send_signal(signal.SIGTERM)
    assert installed.process.wait(PATIENCE) == 0
    gone = subprocess.run(check, env=env, timeout=PATIENCE, capture_output=True)
    assert gone.returncode != 0


def unit(tmp_path: Path) -> Path:
    """The unit, with a command and files that are on every machine."""
    text = (SYSTEMD / "mlx-commons.service").read_text()
    (start,) = re.findall(r"^ExecStart=(\S+) serve --config (\S+)$", text, re.MULTILINE)
    file = tmp_path / "mlx-commons.service"
    file.write_text(text.replace(start[0], "/bin/true"))
    return file


def test_the_unit_gives_time_to_drain() -> None:
    text = (SYSTEMD / "mlx-commons.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert int(settings["TimeoutStopSec"]) > DRAIN
    assert int(settings["LimitNOFILE"]) >= 4096
    assert settings["ExecReload"].startswith("/bin/kill -HUP")
    assert settings["User"] == "mlx-commons"
    assert settings["RestartPreventExitStatus"] == "2"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_the_unit_is_sound_and_hardened(tmp_path: Path) -> None:
    file = unit(tmp_path)
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    ours = [line for line in checked.stderr.splitlines() if file.name in line]
    assert (checked.returncode, ours) == (0, [])
    command = ["systemd-analyze", "security", "--offline=true", str(file)]
    judged = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    level = re.search(r"exposure level for \S+: ([\d.]+)", judged.stdout)
    if level is not None:  # older versions judge running units only
        assert float(level[1]) < 2.5


def test_the_container_is_made_of_what_is_there() -> None:
    text = CONTAINERFILE.read_text()
    (user,) = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert int(user) > 0
    kept = (ROOT / "deploy/Containerfile.dockerignore").read_text().split()
    lines = re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)
    copied = [name for line in lines for name in line.split()]
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in kept
    assert {"cache", "engine", "scheduler", "server"} <= set(copied)
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(set(stages)) == 1, "what was built must run"
