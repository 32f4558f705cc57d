"""The command line: ``commons serve``, ``bench``, ``doctor`` and ``keys``."""

from __future__ import annotations

import importlib.metadata
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from server.bench import bench
from server.doctor import doctor
from server.exit import leave
from server.keys_command import keys
from server.serve_command import (
    ServeCommand,
    blaming,
    consume,
    read_config,
    rereading,
    settings_of,
)

if TYPE_CHECKING:
    from server.config import ServerConfig

app = typer.Typer(
    help="One model endpoint that a team and all its agents share.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(bench)
app.command()(doctor)
app.add_typer(keys, name="keys")


class Dtype(StrEnum):
    """Types to compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class MetricsCompat(StrEnum):
    """Servers under whose names the metrics can be read, too."""

    vllm = "vllm"


class LogLevel(StrEnum):
    """How much is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


@app.command(cls=ServeCommand)
def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_REPO",
            envvar="COMMONS_MODEL",
            help="MLX model directory or repository id; without it the embedded commons-tiny.",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="COMMONS_SERVED_MODEL_NAME",
            help="The id in requests; by default the path's last part.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            envvar="COMMONS_ADAPTER",
            help="A LoRA adapter, served as MODEL:NAME; may be repeated.",
        ),
    ] = None,
    adapter_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="COMMONS_ADAPTER_DIR",
            help="Folder that /admin/adapters may load from.",
        ),
    ] = None,
    adapter_slots: Annotated[
        int,
        typer.Option(min=1, envvar="COMMONS_ADAPTER_SLOTS", help="Adapters in memory at once."),
    ] = 64,
    draft_model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_REPO",
            envvar="COMMONS_DRAFT_MODEL",
            help="A small model of the same family that proposes tokens; ngram: what followed the "
            "same words before in the conversation; none. The embedded model has its own.",
        ),
    ] = None,
    num_draft_tokens: Annotated[
        int,
        typer.Option(
            min=1, max=16, envvar="COMMONS_NUM_DRAFT_TOKENS", help="Tokens proposed at once."
        ),
    ] = 4,
    host: Annotated[
        str, typer.Option(envvar="COMMONS_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, envvar="COMMONS_PORT", help="Port; 0 takes a free one."),
    ] = 8000,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="COMMONS_CONFIG",
            help="TOML file with any of these options, with models and tenants.",
            callback=read_config,
            is_eager=True,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="COMMONS_API_KEY",
            help="One key for everything; without it and without tenants anybody is served.",
        ),
    ] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated",
            envvar="COMMONS_ALLOW_UNAUTHENTICATED",
            help="Let other machines in although there are no keys.",
        ),
    ] = False,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            envvar="COMMONS_KV_MEMORY",
            help="KV of running requests and cache together, e.g. 12GB; by default what the "
            "device recommends, less weights and a margin.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            envvar="COMMONS_MEMORY",
            help="Weights of all loaded models and KV together; by default what the device "
            "recommends. Models of the settings file are unloaded to stay within it.",
        ),
    ] = None,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            envvar="COMMONS_PREFIX_CACHE",
            help="Keep and lend prefixes, or compute every prompt anew.",
        ),
    ] = True,
    normalise_prompts: Annotated[
        bool,
        typer.Option(
            "--normalise-prompts/--no-normalise-prompts",
            envvar="COMMONS_NORMALISE_PROMPTS",
            help="Take out of prompts what differs by request and means nothing to the model.",
        ),
    ] = True,
    max_rows: Annotated[
        int, typer.Option(min=1, envvar="COMMONS_MAX_ROWS", help="Requests decoded together.")
    ] = 64,
    max_queue: Annotated[
        int,
        typer.Option(min=0, envvar="COMMONS_MAX_QUEUE", help="Requests waiting; beyond it, 503."),
    ] = 256,
    stall_target_ms: Annotated[
        float,
        typer.Option(
            min=1.0,
            envvar="COMMONS_STALL_TARGET_MS",
            help="How long a running stream may wait while a prompt is computed.",
        ),
    ] = 100.0,
    default_max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="COMMONS_DEFAULT_MAX_TOKENS",
            help="Length of a reply where the request names none.",
        ),
    ] = 4096,
    max_context: Annotated[
        int | None,
        typer.Option(min=2, envvar="COMMONS_MAX_CONTEXT", help="Less context than the model has."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            envvar="COMMONS_DTYPE", help="Compute in this type instead of the stored one."
        ),
    ] = None,
    usage_db: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            envvar="COMMONS_USAGE_DB",
            help="SQLite file that keeps what tenants use across restarts, or none; by default "
            "beside the --config file, and without one none.",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            envvar="COMMONS_TRUST_REMOTE_CODE",
            help="Run code that comes with a model.",
        ),
    ] = False,
    drain_timeout: Annotated[
        float,
        typer.Option(
            min=0.0,
            envvar="COMMONS_DRAIN_TIMEOUT",
            help="Seconds that running requests get to finish at SIGTERM.",
        ),
    ] = 30.0,
    metrics_compat: Annotated[
        MetricsCompat | None,
        typer.Option(
            envvar="COMMONS_METRICS_COMPAT",
            help="Show the metrics under this server's names, too, for its dashboards and routers.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="COMMONS_LOG_LEVEL", help="How much is logged.")
    ] = LogLevel.info,
    log_json: Annotated[
        bool,
        typer.Option("--log-json", envvar="COMMONS_LOG_JSON", help="Log one JSON object a line."),
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="COMMONS_LOG_FILE",
            help="Log to this file, which may be renamed meanwhile, instead of standard error.",
        ),
    ] = None,
    log_prompts: Annotated[
        bool,
        typer.Option(
            "--log-prompts",
            envvar="COMMONS_LOG_PROMPTS",
            help="Log what clients send, too; without it no prompt is in the log.",
        ),
    ] = False,
    otel_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="COMMONS_OTEL_ENDPOINT",
            help="Send a trace of each request to this OpenTelemetry collector (OTLP over HTTP).",
        ),
    ] = None,
) -> None:
    """Serve a model on an OpenAI-compatible endpoint."""
    # Imported here: `commons bench` and `--help` need neither MLX nor a server.
    from engine import embedded
    from scheduler.info import ServiceConfig
    from server.config import (
        ServerConfig,
        draft_of,
        own_adapters,
        parse_adapters,
        parse_size,
        served_name,
        usage_file,
    )
    from server.settings_file import ConfigError
    from server.tables import with_tables
    from server.tracing import parse_endpoint

    path = model or str(embedded.path())
    name = served_model_name or served_name(path)
    with blaming(context, "kv_memory"):
        kv_bytes = None if kv_memory is None else parse_size(kv_memory)
    with blaming(context, "memory"):
        all_bytes = None if memory is None else parse_size(memory)
        if all_bytes is not None and all_bytes <= (kv_bytes or 0):
            raise ConfigError(f"{memory!r} leaves nothing for weights beside --kv-memory")
    with blaming(context, "adapter"):
        adapters = parse_adapters(own_adapters(path) + (adapter or []), name)
    with blaming(context, "otel_endpoint"):
        traces = None if otel_endpoint is None else parse_endpoint(otel_endpoint)
    draft_path, draft_name = draft_of(draft_model, path)
    service = ServiceConfig(
        model=path,
        served_model_name=name,
        kv_memory=kv_bytes,
        prefix_cache=prefix_cache,
        max_rows=max_rows,
        max_queue=max_queue,
        stall_target_ms=stall_target_ms,
        dtype=dtype.value if dtype else None,
        trust_remote_code=trust_remote_code,
        max_context=max_context,
        adapters=adapters,
        adapter_slots=adapter_slots,
        draft_model=draft_path,
        draft_name=draft_name,
        num_draft_tokens=num_draft_tokens,
        memory=all_bytes,
        normalise_prompts=normalise_prompts,
    )
    service, grants = with_tables(service, settings_of(context), api_key)
    server = ServerConfig(
        service,
        host,
        port,
        default_max_tokens,
        drain_timeout,
        adapter_dir,
        grants,
        allow_unauthenticated,
        config,
        log_level.value,
        rereading(context),
        usage_file(usage_db, config),
        metrics_compat.value if metrics_compat else None,
        log_json,
        log_prompts,
        log_file and log_file.expanduser(),
        traces,
    )
    consume(context, _run)(server)


def _run(config: ServerConfig) -> NoReturn:
    """Serves to the end of the process."""
    from server.launch import run
    from server.logs import configure

    try:
        configure(config.log_level, config.log_file, as_json=config.log_json)
    except OSError as error:
        typer.echo(f"commons serve: cannot write {config.log_file}: {error.strerror}", err=True)
        leave(1)
    leave(run(config))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlx-commons {importlib.metadata.version('mlx-commons')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """One model endpoint that a team and all its agents share."""


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
