"""What ``commons serve`` can be told.

A field is an option, a ``COMMONS_*`` variable and a key of the settings file, all of one name.
Nothing here needs MLX, so that the help does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .options import Options, option
from .serve_command import read_config


@dataclass(frozen=True, slots=True)
class ModelOptions(Options):
    """What is served."""

    panel = "Models"

    model: str | None = option(
        None,
        "MLX model directory or repository id; without it the embedded commons-tiny.",
        metavar="PATH_OR_REPO",
    )
    served_model_name: str | None = option(
        None, "The id in requests; by default the path's last part.", metavar="NAME"
    )
    adapter: list[str] | None = option(
        None, "A LoRA adapter, served as MODEL:NAME; may be repeated.", metavar="NAME=PATH"
    )
    adapter_dir: Path | None = option(
        None, "Folder that /admin/adapters may load from.", metavar="DIR"
    )
    adapter_slots: int = option(64, "Adapters in memory at once.", min=1)
    draft_model: str | None = option(
        None,
        "A small model of the same family that proposes tokens; ngram: what followed the same "
        "words before in the conversation; none. The embedded model has its own.",
        metavar="PATH_OR_REPO",
    )
    num_draft_tokens: int = option(4, "Tokens proposed at once.", min=1, max=16)
    max_context: int | None = option(None, "Less context than the model has.", min=2)
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "Compute in this type instead of the stored one."
    )
    trust_remote_code: bool = option(False, "Run code that comes with a model.")


@dataclass(frozen=True, slots=True)
class EndpointOptions(Options):
    """Where it is served, and to whom."""

    panel = "Endpoint"

    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port; 0 takes a free one.", min=0, max=65535)
    config: Path | None = option(
        None,
        "TOML file with any of these options, with models and tenants.",
        metavar="FILE",
        callback=read_config,
        is_eager=True,
    )
    api_key: str | None = option(
        None,
        "One key for everything; without it and without tenants anybody is served.",
        metavar="KEY",
    )
    allow_unauthenticated: bool = option(False, "Let other machines in although there are no keys.")
    usage_db: str | None = option(
        None,
        "SQLite file that keeps what tenants use across restarts, or none; by default beside the "
        "--config file, and without one none.",
        metavar="FILE",
    )
    drain_timeout: float = option(
        30.0, "Seconds that running requests get to finish at SIGTERM.", min=0.0
    )


@dataclass(frozen=True, slots=True)
class LimitOptions(Options):
    """What serving may take."""

    panel = "Memory and load"

    kv_memory: str | None = option(
        None,
        "KV of running requests and cache together, e.g. 12GB; by default what the device "
        "recommends, less weights and a margin.",
        metavar="SIZE",
    )
    memory: str | None = option(
        None,
        "Weights of all loaded models and KV together; by default what the device recommends. "
        "Models of the settings file are unloaded to stay within it.",
        metavar="SIZE",
    )
    prefix_cache: bool = option(True, "Keep and lend prefixes, or compute every prompt anew.")
    normalise_prompts: bool = option(
        True, "Take out of prompts what differs by request and means nothing to the model."
    )
    max_rows: int = option(64, "Requests decoded together.", min=1)
    max_queue: int = option(256, "Requests waiting; beyond it, 503.", min=0)
    stall_target_ms: float = option(
        100.0, "How long a running stream may wait while a prompt is computed.", min=1.0
    )
    default_max_tokens: int = option(4096, "Length of a reply where the request names none.", min=1)


@dataclass(frozen=True, slots=True)
class LogOptions(Options):
    """What is told of it."""

    panel = "Log, metrics and traces"

    log_level: Literal["debug", "info", "warning", "error"] = option("info", "How much is logged.")
    log_json: bool = option(False, "Log one JSON object a line.")
    log_file: Path | None = option(
        None,
        "Log to this file, which may be renamed meanwhile, instead of standard error.",
        metavar="FILE",
    )
    log_prompts: bool = option(
        False, "Log what clients send, too; without it no prompt is in the log."
    )
    metrics_compat: Literal["vllm"] | None = option(
        None, "Show the metrics under this server's names, too, for its dashboards and routers."
    )
    otel_endpoint: str | None = option(
        None,
        "Send a trace of each request to this OpenTelemetry collector (OTLP over HTTP).",
        metavar="URL",
    )
