"""Sizes, names and files of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import embedded
from server.config import parse_size, served_name
from server.settings_file import ConfigError, read_file


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 1_000_000),
        ("12GB", 12 * 10**9),
        ("12 gb", 12 * 10**9),
        ("12G", 12 * 10**9),
        ("1.5TB", 1_500_000_000_000),
        ("512MiB", 512 << 20),
        ("1kib", 1024),
        ("2KB", 2000),
        (" 7B ", 7),
    ],
)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "12XB", "0", "0.1B", "1 000", "nan"])
def test_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


def test_served_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served_name(str(embedded.path())) == "commons-tiny"
    assert served_name("mlx-community/Qwen3-4B-4bit") == "Qwen3-4B-4bit"
    (tmp_path / "Model").mkdir()
    assert served_name(f"{tmp_path}/Model/") == "Model"
    monkeypatch.chdir(tmp_path / "Model")
    assert served_name(".") == "Model"


def test_served_name_of_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "Model").mkdir()
    assert served_name("~/Model") == "Model"


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('max-rows = 3\nhost = "h"\n')
    assert read_file(file, ["max_rows", "host"]).values == {"max_rows": 3, "host": "h"}


@pytest.mark.parametrize("content", [b"a = ", b"\xff = 1", b"other = 1", b"[section]\na = 1"])
def test_bad_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.toml"):
        read_file(file, ["a"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_file(tmp_path / "none", [])
    with pytest.raises(ConfigError, match="cannot read"):
        read_file(tmp_path, [])
