"""``commons keys``: what is printed, what is kept, and what is refused."""

from __future__ import annotations

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server import cli
from server.keys import keys_path, new_key, read_keys, revoke_key
from server.settings_file import ConfigError

from .process import commons

DIGEST = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "commons.toml"
    file.write_text("[tenants.a]\n[tenants.b]\n")
    return file


def invoke(*args: str) -> Any:
    return CliRunner().invoke(cli.app, ["keys", *args])


def test_a_key_is_printed_once_and_only_its_hash_is_kept(config: Path) -> None:
    ended = commons("keys", "new", "a", "--config", str(config))
    assert ended.returncode == 0, ended.stderr
    key = ended.stdout.splitlines()[-1]
    assert key.startswith("commons-")
    assert len(key) >= len("commons-") + 43, "256 bits in base 64"
    assert key.strip() == key
    file = config.with_suffix(".keys")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (kept,) = read_keys(file)
    assert (kept.name, kept.digest) == ("a", hashlib.sha256(key.encode()).digest())
    written = [p.read_text() for p in config.parent.iterdir()]
    assert not any(key in text or key.removeprefix("commons-") in text for text in written)
    assert sorted(p.name for p in config.parent.iterdir()) == ["commons.keys", "commons.toml"]


def test_keys_are_listed_and_revoked_by_the_beginning_of_their_id(config: Path) -> None:
    for name in ("a", "a", "b", "admin", "metrics"):
        assert invoke("new", name, "--config", str(config)).exit_code == 0
    file = keys_path(config)
    before = read_keys(file)
    listed = invoke("list", "--config", str(config)).output.splitlines()
    assert [line.split()[:2] for line in listed] == [[k.id, k.name] for k in before]
    gone = before[1]
    revoked = invoke("revoke", gone.id[:8], "--config", str(config))
    assert (revoked.exit_code, gone.id in revoked.output) == (0, True)
    assert read_keys(file) == (before[0], *before[2:])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for start in (gone.id, "", "xyz"):
        again = invoke("revoke", start, "--config", str(config))
        assert again.exit_code == 2
        assert "there is no key" in again.output


def test_beginning_of_several_ids_revokes_none(tmp_path: Path) -> None:
    file = tmp_path / "c.keys"
    file.touch(0o600)
    file.write_text(f"sha256:{DIGEST} a now\nsha256:{DIGEST[:-2]}cd b now\n")
    with pytest.raises(ConfigError, match="several keys begin with 'abab'"):
        revoke_key(file, "abab")
    assert len(read_keys(file)) == 2
    assert revoke_key(file, DIGEST[:-2] + "c").name == "b"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("[tenants.a]", "c", "'c' is no tenant of"),
        ("[tenants.a]", "default", "there are a, admin, metrics"),
        ("", "a", "there are default, admin, metrics"),
        ("[tenants.admin]", "admin", "commons.toml:1: [tenants.admin]: "),
        ("[tenants", "a", "commons.toml:1: "),
    ],
)
def test_names_that_no_key_is_for(config: Path, text: str, name: str, said: str) -> None:
    config.write_text(text)
    ended = invoke("new", name, "--config", str(config))
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert not ended.stdout
    assert not keys_path(config).exists()


def test_without_tenants_there_are_keys_for_the_default_one(config: Path) -> None:
    config.write_text("")
    assert invoke("new", "default", "--config", str(config)).exit_code == 0
    assert [key.name for key in read_keys(keys_path(config))] == ["default"]


def test_config_is_needed_and_must_be_there(tmp_path: Path) -> None:
    assert invoke("new", "a").exit_code == 2
    ended = invoke("new", "a", "--config", str(tmp_path / "none"))
    assert (ended.exit_code, "cannot read" in ended.stderr) == (2, True)


def test_keys_made_at_once_are_all_kept(config: Path) -> None:
    file = keys_path(config)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: new_key(file, "a"), range(40)))
    kept = {key.digest for key in read_keys(file)}
    assert kept == {hashlib.sha256(key.encode()).digest() for key in keys}


def test_a_write_that_fails_leaves_the_old_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = keys_path(config)
    new_key(file, "a")
    before = file.read_text()

    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(ConfigError, match=r"cannot write .*No space left"):
        new_key(file, "a")
    assert file.read_text() == before
    assert sorted(p.name for p in config.parent.iterdir()) == ["commons.keys", "commons.toml"]


def test_a_link_to_the_file_stays_one(config: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.keys"
    keys_path(config).symlink_to(real)
    new_key(keys_path(config), "a")
    assert keys_path(config).is_symlink()
    assert len(read_keys(real)) == 1


def test_path_beside_the_settings() -> None:
    assert keys_path(Path("/x/commons.toml")) == Path("/x/commons.keys")
    assert keys_path(Path("/x/commons")) == Path("/x/commons.keys")
    assert keys_path(Path("/x/commons.keys")) == Path("/x/commons.keys.keys")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# c\n\nsha256:12 a now", "c.keys:3: this is no key"),
        (f"sha256:{DIGEST} a", "c.keys:1: this is no key"),
        (
            f"sha256:{DIGEST} a now\nsha256:{DIGEST} a now",
            "c.keys:2: the key of 'a' is given twice",
        ),
        (
            f"sha256:{DIGEST} a now\n\nsha256:{DIGEST} b now",
            "c.keys:3: the key of 'b' is",
        ),
    ],
)
def test_bad_file(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.keys"
    file.touch(0o600)
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(file)
    assert said in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o666, 0o604])
def test_file_that_is_open_to_others(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "c.keys"
    new_key(file, "a")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"open to others .mode {mode:04o}.: run `chmod 600 "):
        read_keys(file)
    file.chmod(0o400)
    assert len(read_keys(file)) == 1


def test_no_file_is_no_key(tmp_path: Path) -> None:
    assert read_keys(tmp_path / "c.keys") == ()
    with pytest.raises(ConfigError, match="cannot read"):
        read_keys(tmp_path)
