"""The command line: what it refuses, what it explains, and which source of a setting wins."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine import embedded
from scheduler.info import ModelConfig, ServiceConfig
from server import cli
from server.access import Grants
from server.config import ServerConfig
from server.keys import digest_of
from server.serve_options import EndpointOptions, LimitOptions, LogOptions, ModelOptions

from .process import commons

PLAIN = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def invoke(*args: str, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(cli.app, args, env=PLAIN | (env or {}))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("serve", "--adapter", "a"), "--adapter"),
        (("serve", "--port", "70000"), "--port"),
        (("serve", "--max-rows", "0"), "--max-rows"),
        (("serve", "--kv-memory", "much"), "'much' is not a size"),
        (("serve", "--dtype", "int3"), "--dtype"),
        (("serve", "--config", "/no/such/file"), "cannot read /no/such/file"),
        (("serve", "surplus"), "surplus"),
        (("serve", "--api-key", "two words"), "--api-key"),
        (("serve", "--api-key", ""), "--api-key"),
        (("serve", "--metrics-compat", "tgi"), "--metrics-compat"),
    ],
)
def test_wrong_options_are_refused(
    started: list[ServerConfig], args: tuple[str, ...], said: str
) -> None:
    ended = invoke(*args)
    assert ended.exit_code == 2
    assert said in ended.output
    assert not started


def test_unknown_option_ends_the_process_with_2() -> None:
    ended = commons("serve", "--grammar", "k", env=PLAIN)
    assert ended.returncode == 2
    assert "No such option: --grammar" in ended.stderr
    assert not ended.stdout


def test_help_needs_no_model_and_names_every_option() -> None:
    ended = commons("serve", "--help", env=PLAIN)
    assert ended.returncode == 0
    for option in ("--model", "--kv-memory", "--no-prefix-cache", "--max-queue", "--config"):
        assert option in ended.stdout


def test_version() -> None:
    assert invoke("--version").output.startswith("mlx-commons ")


def test_defaults_serve_the_embedded_model(started: list[ServerConfig]) -> None:
    assert invoke("serve").exit_code == 0
    (config,) = started
    assert config.service.model == str(embedded.path())
    assert config.service.served_model_name == "commons-tiny"
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert config.service.kv_memory is None
    assert config.service.prefix_cache
    assert (config.default_max_tokens, config.service.stall_target_ms) == (4096, 100.0)


def test_options_and_what_they_make_have_the_same_names_and_defaults() -> None:
    groups = (ModelOptions, EndpointOptions, LimitOptions, LogOptions)
    options = {f.name: f.default for group in groups for f in fields(group)}
    made = {f.name: f.default for kind in (ServiceConfig, ServerConfig) for f in fields(kind)}
    assert options.keys() - made.keys() == {"adapter", "api_key"}
    needed = {name for name, default in made.items() if default is MISSING}
    assert {n: d for n, d in options.items() if n in made and n not in needed} == {
        n: d for n, d in made.items() if n in options and n not in needed
    }


def test_line_over_environment_over_file(started: list[ServerConfig], tmp_path: Path) -> None:
    file = tmp_path / "commons.toml"
    file.write_text(
        'port = 1\nmax-rows = 2\nmax_queue = 3\nkv-memory = "4GB"\nprefix-cache = false\n'
        'model = "models/from-file"\n'
    )
    env = {"COMMONS_PORT": "11", "COMMONS_MAX_ROWS": "12", "COMMONS_CONFIG": str(file)}
    assert invoke("serve", "--port", "21", env=env).exit_code == 0
    (config,) = started
    assert config.port == 21
    assert config.service.max_rows == 12
    assert config.service.max_queue == 3
    assert config.service.kv_memory == 4_000_000_000
    assert not config.service.prefix_cache
    assert config.service.served_model_name == "from-file"


def test_further_models_come_from_the_file(started: list[ServerConfig], tmp_path: Path) -> None:
    file = tmp_path / "commons.toml"
    file.write_text(
        'memory = "32GB"\nkv-memory = "4GB"\nadapter = ["sql=/a/sql"]\n'
        '[models.coder]\nmodel = "org/coder"\nkeep-loaded = true\n'
    )
    assert invoke("serve", "--config", str(file), "--kv-memory", "5GB").exit_code == 0
    (config,) = started
    service = config.service
    assert (service.memory, service.kv_memory) == (32_000_000_000, 5_000_000_000)
    assert service.models == (ModelConfig("coder", "org/coder", keep_loaded=True),)
    assert [m.name for m in service.all_models] == ["commons-tiny", "coder"]
    main, coder = service.all_models
    assert main.adapters[-1] == ("sql", "/a/sql")
    assert main.drafts == (embedded.DRAFT_NAME, "ngram")
    assert coder.drafts == ()


def test_every_option_has_its_variable(started: list[ServerConfig]) -> None:
    env = {
        "COMMONS_MODEL": "some/model",
        "COMMONS_SERVED_MODEL_NAME": "name",
        "COMMONS_HOST": "::1",
        "COMMONS_KV_MEMORY": "1MiB",
        "COMMONS_MEMORY": "1GiB",
        "COMMONS_PREFIX_CACHE": "false",
        "COMMONS_STALL_TARGET_MS": "7.5",
        "COMMONS_DEFAULT_MAX_TOKENS": "9",
        "COMMONS_MAX_CONTEXT": "99",
        "COMMONS_DTYPE": "float32",
        "COMMONS_DRAIN_TIMEOUT": "0",
        "COMMONS_LOG_LEVEL": "error",
        "COMMONS_API_KEY": "the-key",
        "COMMONS_ALLOW_UNAUTHENTICATED": "true",
        "COMMONS_METRICS_COMPAT": "vllm",
    }
    assert invoke("serve", env=env).exit_code == 0
    (config,) = started
    service = config.service
    assert (service.model, service.served_model_name, config.host) == ("some/model", "name", "::1")
    assert (service.kv_memory, service.prefix_cache) == (1 << 20, False)
    assert service.memory == 1 << 30
    assert (service.stall_target_ms, config.default_max_tokens) == (7.5, 9)
    assert (service.max_context, service.dtype, config.drain_timeout) == (99, "float32", 0.0)
    assert not service.trust_remote_code
    assert (config.log_level, config.allow_unauthenticated) == ("error", True)
    assert config.metrics_compat == "vllm"
    assert config.grants == Grants(api_key=digest_of(b"the-key"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "'colour' is not a setting"),
        ("port = ", "Invalid value"),
        ('port = "many"', "--port"),
        ("port = 70000", "--port"),
        ("max_rows = 0", "--max-rows"),
        ('config = "other"', "'config' is not a setting"),
        ('kv-memory = "x"', "'x' is not a size"),
        ('memory = "x"', "'x' is not a size"),
        ('memory = "4GB"\nkv-memory = "4GB"', "leaves nothing for weights"),
        ("[models.a]", "'model' is missing"),
    ],
)
def test_bad_file_is_refused(
    started: list[ServerConfig], tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "commons.toml"
    file.write_text(text + "\n")
    ended = invoke("serve", "--config", str(file))
    assert ended.exit_code == 2
    assert said in ended.output
    assert not started


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max-rows = 1\n[tenants.a]\nweight = -1", 3),
        ("\nport = 70000", 2),
        ("[models.a]\nmodel = 'x'\ncolour = 1", 3),
        ("[tenants.a]\n[tenants.a]", 2),
    ],
)
def test_process_refuses_a_bad_file_in_one_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "a folder whose name is long enough to be wrapped at eighty" / "commons.toml"
    file.parent.mkdir()
    file.write_text(text)
    ended = commons("serve", "--config", str(file))
    assert ended.returncode == 2
    assert not ended.stdout
    (said,) = ended.stderr.splitlines()
    assert said.startswith(f"commons serve: {file}:{line}: ")


def test_process_serves_with_settings_of_all_sources(tiny: str, tmp_path: Path) -> None:
    """Once through a real process: an address that cannot be bound tells which one won."""
    file = tmp_path / "commons.toml"
    file.write_text('host = "256.0.0.1"\nport = 1\n')
    ended = commons("serve", "--config", str(file), env={"COMMONS_PORT": "2"})
    assert ended.returncode == 1
    assert "cannot listen on 256.0.0.1:2:" in ended.stderr
