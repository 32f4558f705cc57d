"""The example of a settings file: it loads as it is, and so does what is commented out in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from scheduler.tenant import Limits
from server import cli
from server.config import ServerConfig
from server.keys import keys_path, new_key

from .process import ROOT

EXAMPLE = ROOT / "deploy" / "commons.example.toml"
SETTING = re.compile(r"# (?=[\w-]+ = |\"[^\"]+\" = |\[)")


def serve(path: Path) -> Any:
    return CliRunner().invoke(cli.app, ["serve", "--config", str(path)])


def test_it_loads_as_it_is(started: list[ServerConfig], tmp_path: Path) -> None:
    path = tmp_path / "commons.toml"
    path.write_text(EXAMPLE.read_text())
    for name in ("research", "nightly", "visitors", "admin", "metrics"):
        new_key(keys_path(path), name)
    ended = serve(path)
    assert ended.exit_code == 0, ended.output
    (config,) = started
    research, nightly, visitors = config.grants.tenants
    assert (research.weight, research.priority, research.models) == (3, "interactive", None)
    assert nightly.priority == "batch"
    assert nightly.models == {"commons-tiny"}
    assert nightly.limits == Limits(600, 2_000_000, 32, 16, 4096, 32_768, 0.5)
    assert visitors.trust_domain == "visitors"
    assert config.service.tenants == config.grants.tenants
    assert not config.grants.orphans
    (public,) = config.service.public
    assert public.model == "commons-tiny"
    assert len(config.grants.keys) == 5


def test_what_is_commented_out_is_right_too(started: list[ServerConfig], tmp_path: Path) -> None:
    path = tmp_path / "commons.toml"
    text = EXAMPLE.read_text()
    shown = "\n".join(SETTING.sub("", line, count=1) for line in text.split("\n"))
    assert len(tomllib.loads(shown)) > len(tomllib.loads(text))
    path.write_text(shown.replace('models = ["commons-tiny"]', 'models = ["qwen3", "coder"]'))
    new_key(keys_path(path), "research")
    ended = serve(path)
    assert ended.exit_code == 0, ended.output
    (config,) = started
    assert [m.name for m in config.service.all_models] == ["qwen3", "coder"]
    assert config.service.aliases == (("gpt-4o", "qwen3"), ("claude-*", "coder:review"))
    chat, text_prompt = config.service.public
    assert (chat.model, text_prompt.text) == ("coder", "Once upon a time")
    assert chat.tools is not None
