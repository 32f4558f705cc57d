"""What the options of ``commons serve`` and the settings file make together."""

from __future__ import annotations

import typer

from engine import embedded
from scheduler.info import ServiceConfig

from .config import (
    ServerConfig,
    draft_of,
    own_adapters,
    parse_adapters,
    parse_size,
    served_name,
    usage_file,
)
from .serve_command import blaming, rereading, settings_of
from .serve_options import EndpointOptions, LimitOptions, LogOptions, ModelOptions
from .settings_file import ConfigError
from .tables import with_tables
from .tracing import parse_endpoint


def server_config(
    context: typer.Context,
    models: ModelOptions,
    endpoint: EndpointOptions,
    limits: LimitOptions,
    logs: LogOptions,
) -> ServerConfig:
    """The whole. Raises ConfigError, BadParameter."""
    service = _service(context, models, limits)
    with blaming(context, "otel_endpoint"):
        traces = None if logs.otel_endpoint is None else parse_endpoint(logs.otel_endpoint)
    service, grants = with_tables(service, settings_of(context), endpoint.api_key)
    return ServerConfig(
        service,
        host=endpoint.host,
        port=endpoint.port,
        default_max_tokens=limits.default_max_tokens,
        drain_timeout=endpoint.drain_timeout,
        adapter_dir=models.adapter_dir,
        grants=grants,
        allow_unauthenticated=endpoint.allow_unauthenticated,
        config=endpoint.config,
        log_level=logs.log_level,
        reread=rereading(context),
        usage_db=usage_file(endpoint.usage_db, endpoint.config),
        metrics_compat=logs.metrics_compat,
        log_json=logs.log_json,
        log_prompts=logs.log_prompts,
        log_file=logs.log_file and logs.log_file.expanduser(),
        otel_endpoint=traces,
    )


def _service(context: typer.Context, models: ModelOptions, limits: LimitOptions) -> ServiceConfig:
    """What is served but for the file's tables."""
    path = models.model or str(embedded.path())
    name = models.served_model_name or served_name(path)
    kv_memory, memory = _memory(context, limits)
    with blaming(context, "adapter"):
        adapters = parse_adapters(own_adapters(path) + (models.adapter or []), name)
    draft_path, draft_name = draft_of(models.draft_model, path)
    return ServiceConfig(
        model=path,
        served_model_name=name,
        kv_memory=kv_memory,
        prefix_cache=limits.prefix_cache,
        max_rows=limits.max_rows,
        max_queue=limits.max_queue,
        stall_target_ms=limits.stall_target_ms,
        dtype=models.dtype,
        trust_remote_code=models.trust_remote_code,
        max_context=models.max_context,
        adapters=adapters,
        adapter_slots=models.adapter_slots,
        draft_model=draft_path,
        draft_name=draft_name,
        num_draft_tokens=models.num_draft_tokens,
        memory=memory,
        normalise_prompts=limits.normalise_prompts,
    )


def _memory(context: typer.Context, limits: LimitOptions) -> tuple[int | None, int | None]:
    """Bytes for KV, and for KV and weights together."""
    with blaming(context, "kv_memory"):
        kv = None if limits.kv_memory is None else parse_size(limits.kv_memory)
    with blaming(context, "memory"):
        whole = None if limits.memory is None else parse_size(limits.memory)
        if whole is not None and whole <= (kv or 0):
            raise ConfigError(f"{limits.memory!r} leaves nothing for weights beside --kv-memory")
    return kv, whole
