"""What the options of ``commons serve`` and the settings file make together."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

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
    made = {
        "service": service,
        "grants": grants,
        "reread": rereading(context),
        "usage_db": usage_file(endpoint.usage_db, endpoint.config),
        "log_file": logs.log_file and logs.log_file.expanduser(),
        "otel_endpoint": traces,
    }
    return ServerConfig(**_namesakes(ServerConfig, models, endpoint, limits, logs) | made)


def _service(context: typer.Context, models: ModelOptions, limits: LimitOptions) -> ServiceConfig:
    """What is served, but for the file's tables."""
    path = models.model or str(embedded.path())
    name = models.served_model_name or served_name(path)
    kv_memory, memory = _memory(context, limits)
    with blaming(context, "adapter"):
        adapters = parse_adapters(own_adapters(path) + (models.adapter or []), name)
    draft_path, draft_name = draft_of(models.draft_model, path)
    made = {
        "model": path,
        "served_model_name": name,
        "kv_memory": kv_memory,
        "memory": memory,
        "adapters": adapters,
        "draft_model": draft_path,
        "draft_name": draft_name,
    }
    return ServiceConfig(**_namesakes(ServiceConfig, models, limits) | made)


def _namesakes(kind: type[Any], *groups: Any) -> dict[str, Any]:
    """The options that are fields of ``kind``, too."""
    options = {each.name: getattr(group, each.name) for group in groups for each in fields(group)}
    return {each.name: options[each.name] for each in fields(kind) if each.name in options}


def _memory(context: typer.Context, limits: LimitOptions) -> tuple[int | None, int | None]:
    """Bytes for KV, and for KV and weights together."""
    with blaming(context, "kv_memory"):
        kv = None if limits.kv_memory is None else parse_size(limits.kv_memory)
    with blaming(context, "memory"):
        whole = None if limits.memory is None else parse_size(limits.memory)
        if whole is not None and whole <= (kv or 0):
            raise ConfigError(f"{limits.memory!r} leaves nothing for weights beside --kv-memory")
    return kv, whole
