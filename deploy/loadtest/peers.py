"""Other MLX servers to compare with: installed into venvs of their own, each with its defaults.

Which versions is written here, and on Linux MLX is the version that this server has, so that a
table can be made again.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deploy.loadtest.servers import Kind, ServerFailed

INSTALL_LIMIT = 1800.0  # s; some bring torch along


class Peer(NamedTuple):
    """How to install a server and how to start it; ``command`` gets the venv's ``bin``."""

    package: str
    version: str
    command: Callable[[Path, Path, int], list[str]]
    model: str = "default"


def _mlx_lm(folder: Path, model: Path, port: int) -> list[str]:
    return [str(folder / "mlx_lm.server"), "--model", str(model), "--port", str(port)]


def _vllm_mlx(folder: Path, model: Path, port: int) -> list[str]:
    # By default it serves one user at a time, and says that this is the option for several.
    serve = [str(folder / "vllm-mlx"), "serve", str(model), "--port", str(port)]
    return [*serve, "--continuous-batching"]


def _rapid_mlx(folder: Path, model: Path, port: int) -> list[str]:
    return [str(folder / "rapid-mlx"), "serve", str(model), "--port", str(port)]


PEERS = {
    "mlx_lm": Peer("mlx-lm", "0.32.2", _mlx_lm, "default_model"),
    "vllm_mlx": Peer("vllm-mlx", "0.6.0", _vllm_mlx),
    "rapid_mlx": Peer("rapid-mlx", "0.16.10", _rapid_mlx),
}


def install(name: str, folder: Path) -> Kind:
    """Installs a peer below ``folder`` unless it is there. Raises ServerFailed where it cannot."""
    peer, venv = PEERS[name], (folder / name).absolute()
    log = venv.with_suffix(".install.log")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    wanted, stamp = requirements(peer), venv / ".installed"
    if not stamp.exists() or stamp.read_text(encoding="utf-8").split() != wanted:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            _step(name, [sys.executable, "-m", "venv", "--clear", str(venv)], out, log)
            _step(name, [*pip, *wanted], out, log)
        stamp.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    command = peer.command

    def start(model: Path, port: int) -> list[str]:
        return command(venv / "bin", model, port)

    return Kind(start, "/v1/models", peer.model, _home(venv))


def requirements(peer: Peer) -> list[str]:
    """What is installed for a peer."""
    server = f"{peer.package}=={peer.version}"
    if sys.platform != "linux":
        return [server]
    return [server, f"mlx[cpu]=={importlib.metadata.version('mlx')}"]


def _step(name: str, command: list[str], out: object, log: Path) -> None:
    try:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=_clean(), timeout=INSTALL_LIMIT
        )
    except subprocess.TimeoutExpired as error:
        raise ServerFailed(f"{name} was not installed within {INSTALL_LIMIT:.0f} s") from error
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines or ["without a word"]
        raise ServerFailed(f"{name} cannot be installed here: {errors[-1]} (all of it: {log})")


def _clean() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _home(venv: Path) -> dict[str, str]:
    """A home of its own: these servers keep prompt caches there, which would outlive a run."""
    home = venv / "home"
    home.mkdir(exist_ok=True)
    models = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return {"HOME": str(home), "HF_HOME": models, "PYTHONPATH": ""}
