"""What the tests of several models share: a settings file, and a hub that does not answer."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from .process import PATIENCE
from .support import CONTEXT

KV = 8 << 20  # bytes
MAIN, OTHER, THIRD, KEPT = "main", "other", "third", "kept"
BROKEN, HUGE, REMOTE = "broken", "huge", "remote"


class Hub:
    """A model hub that takes calls and does not answer before it is told to hang up."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._called = threading.Event()
        self._hang_up = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._called.set()
            self._hang_up.wait(PATIENCE)
            connection.close()

    def wait_for_call(self) -> None:
        assert self._called.wait(PATIENCE)

    def hang_up(self) -> None:
        self._hang_up.set()

    def close(self) -> None:
        self._hang_up.set()
        self._listener.close()


def weights(path: Path) -> int:
    return (path / "model.safetensors").stat().st_size


def settings(models: dict[str, Path], folder: Path) -> Path:
    """A file with one kept model and room for one more beside the main one and that."""
    room = sum(weights(models[n]) for n in (MAIN, KEPT, OTHER)) + weights(models[OTHER]) // 2
    tables = {
        OTHER: {"model": models[OTHER], "adapters": {"style": str(models["style"])}},
        THIRD: {"model": models[THIRD], "max_context": 512, "draft_model": "ngram"},
        KEPT: {"model": models[KEPT], "keep_loaded": True},
        BROKEN: {"model": models[BROKEN]},
        HUGE: {"model": models[HUGE]},
        REMOTE: {"model": "some/model"},
    }
    lines = [
        f'model = "{models[MAIN]}"',
        f"max-context = {CONTEXT}",
        f'kv-memory = "{KV}"',
        f'memory = "{KV + room}"',
    ]
    for name, table in tables.items():
        lines.append(f"[models.{name}]")
        for key, value in table.items():
            if isinstance(value, dict):
                value = "{" + ", ".join(f'{k} = "{v}"' for k, v in value.items()) + "}"
            elif isinstance(value, bool):
                value = str(value).lower()
            elif isinstance(value, Path | str):
                value = f'"{value}"'
            lines.append(f"{key} = {value}")
    file = folder / "commons.toml"
    file.write_text("\n".join(lines) + "\n")
    return file
