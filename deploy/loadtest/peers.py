"""Other MLX servers to compare with: installed into venvs of their own, each with its defaults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deploy.loadtest.servers import Kind, ServerFailed

INSTALL_LIMIT = 1800.0  # s; some bring torch along


class Peer(NamedTuple):
    """How to install a server and how to start it; ``command`` gets the venv's ``bin``.

    ``version`` is the one that is installed unless another one is asked for.
    """

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


class Installed(NamedTuple):
    """A peer that can be started, and which version of it."""

    kind: Kind
    version: str


def install(name: str, folder: Path) -> Installed:
    """Installs a peer below ``folder`` unless it is there. Raises ServerFailed where it cannot."""
    peer, venv = PEERS[name], (folder / name).absolute()
    log = venv.with_suffix(".install.log")
    python = venv / "bin" / "python"
    if not (venv / ".installed").exists():
        packages = [peer.package, *(["mlx[cpu]"] if sys.platform == "linux" else [])]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            _step(name, [sys.executable, "-m", "venv", "--clear", str(venv)], out, log)
            _step(name, [str(python), "-m", "pip", "install", "--quiet", *packages], out, log)
        (venv / ".installed").touch()
    ask = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
    told = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, env=_clean())
    command = peer.command

    def start(model: Path, port: int) -> list[str]:
        return command(venv / "bin", model, port)

    return Installed(Kind(start, "/v1/models", peer.model, _home(venv)), told.stdout.strip())


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
        raise ServerFailed(f"{name} cannot be installed here: {errors[-1]}")


def _clean() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _home(venv: Path) -> dict[str, str]:
    """A home of its own: these servers keep prompt caches there, which would outlive a run."""
    home = venv / "home"
    home.mkdir(exist_ok=True)
    models = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return {"HOME": str(home), "HF_HOME": models, "PYTHONPATH": ""}
