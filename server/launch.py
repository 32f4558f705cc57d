"""What is looked at before anything slow is done: who is let in, and whether the port is free."""

from __future__ import annotations

import socket

from .config import ServerConfig, check_grants
from .settings_file import ConfigError
from .startup import Startup

BACKLOG = 2048


def run(config: ServerConfig) -> int:
    """Serves until a signal or a failure, if there is nothing against it; the exit code."""
    startup = Startup(logged=config.log_json or config.log_file is not None)
    try:
        check_grants(config)
    except ConfigError as error:
        startup.failed(str(error))
        return 1
    if config.allow_unauthenticated and not config.grants.closed:
        startup.note(f"no keys: anybody who can reach {config.host} is served")
    if config.log_prompts:
        startup.note("the log has what clients send, prompts included (--log-prompts)")
    try:
        listener = bind(config.host, config.port)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        startup.failed(
            f"cannot listen on {config.host}:{config.port}: {why}; choose another --host or --port"
        )
        return 1
    with listener:
        # Imported here: what the engine and the application bring with them takes seconds.
        from .process import serve

        return serve(config, startup, listener)


def bind(host: str, port: int) -> socket.socket:
    """A listening address, taken before anything slow is done. Raises OSError."""
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # two processes may bind one port; only one may listen
        listener.set_inheritable(True)
    except OSError:
        listener.close()
        raise
    return listener
