"""What ``commons doctor`` checks of the machine, whatever the settings are."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .finding import Finding, Named, ok, problem, size, warning

if TYPE_CHECKING:
    from .config import ServerConfig

MIB = 1 << 20
PROBE = 8 * MIB  # bytes written to see how fast a disk is
SLOW_DISK = 20e6  # bytes a second
LEAST_FREE = 1e9  # bytes
FILES = 4096  # at once: what mlx-lm sets as the hard limit, and fails where it cannot
FILES_BESIDE = 128  # that a server has open beside its connections
SPARE = 8 << 30  # bytes that a Mac's system needs beside what is wired
LOW = 0.08  # of all memory, free
OPENBLAS = "openblas-pthread/libblas.so.3"
SLEEP = re.compile(r"^\s*sleep\s+(\d+)", re.MULTILINE)


def machine_checks(config: ServerConfig | None, files: tuple[int, int]) -> Iterator[Named]:
    """All that mean something here; ``config`` is None where the settings could not be read.

    ``files`` are the limits of open files that the process was started with.
    """
    mac, needed = sys.platform == "darwin", needed_memory(config)
    yield Named("python", python)
    yield Named("mlx", mlx, 60.0)  # the first import on a cold disk
    yield Named("memory", lambda: memory(needed))
    if mac:
        yield Named("wired-limit", lambda: wired(needed))
    else:
        yield Named("blas", blas, 30.0)
    yield Named("disk", lambda: disk(_folder(config)))
    yield Named("open-files", lambda: open_files(files[1], config))
    if mac:
        yield Named("sleep", sleep)


def python() -> Finding:
    """An interpreter that MLX has wheels for."""
    said = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return problem(f"{said}: this one runs under Rosetta", "uv python install 3.12")
    return ok(said)


def mlx() -> Finding:
    """MLX and its device."""
    from engine import device

    version, found = importlib.metadata.version("mlx"), device.describe()
    said = f"{version} on {found.name} ({found.backend})"
    if sys.platform == "darwin" and found.backend != "metal":
        return warning(f"{said}: Metal is not available", "run it outside of a virtual machine")
    return ok(said)


def needed_memory(config: ServerConfig | None) -> int:
    """Bytes of the main model's weights and of the KV that was asked for, as far as is known."""
    if config is None:
        return 0
    path = Path(config.service.model).expanduser()
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return max(weights + (config.service.kv_memory or 0), config.service.memory or 0)


def memory(needed: int) -> Finding:
    """Whether what is to be served fits."""
    from engine import device

    found = device.describe()
    free = device.free_memory()
    said = (
        f"{size(found.memory)}, of which {size(free)} are free and {size(found.recommended)} "
        "recommended for a server"
    )
    less = "a smaller model, --kv-memory or --memory"
    if needed > found.memory:
        return problem(f"{said}; the settings take {size(needed)}", less)
    if needed > found.recommended:
        return warning(f"{said}; the settings take {size(needed)}", less)
    if free < LOW * found.memory:
        return warning(f"{said}; other programs have the rest", "close some of them")
    return ok(said)


def wired(needed: int) -> Finding:
    """How much of a Mac's memory its GPU may keep."""
    from engine import device

    return wired_finding(device.wired_limit(), device.describe(), needed)


def wired_finding(limit: int | None, found: object, needed: int) -> Finding:
    """The same by numbers: ``limit`` in MiB, 0 for the system's own, None where unknown."""
    from engine.device import Device

    assert isinstance(found, Device)
    if limit is None:
        return warning("cannot be read; it needs macOS 15 or newer", "sysctl iogpu.wired_limit_mb")
    said = f"{limit} MiB" if limit else "the system's own"
    said = f"{said}; the GPU may keep {size(found.recommended)} of {size(found.memory)}"
    most = (found.memory - SPARE) // MIB
    command = "sudo sysctl iogpu.wired_limit_mb={}"
    if limit > max(most, 0):
        lower = command.format(max(most, 0))
        return warning(f"{said}, which leaves the system less than {size(SPARE)}", lower)
    if needed > found.recommended and needed // MIB < most:
        higher = command.format(min(most, needed // MIB + 2048))
        return warning(f"{said}; the settings take {size(needed)}", higher)
    return ok(said)


def blas() -> Finding:
    """Whether products on the CPU are as fast as they can be."""
    from engine import device

    if device.describe().backend != "cpu":
        return ok("products run on the GPU")
    speed = f"{device.product_speed() / 1e9:.0f} GFLOP/s in float32"
    library = device.openblas()
    if library is None:
        return warning(f"the slow one of MLX's wheel: {speed}", _preload())
    core = device.openblas_core(library)
    if core == "Prescott" and "avx2" in _cpu_flags():
        said = f"OpenBLAS takes this processor for an old one ({core}): {speed}"
        return warning(said, "export OPENBLAS_CORETYPE=Haswell")
    return ok(f"OpenBLAS{f' for {core}' if core else ''}: {speed}")


def _preload() -> str:
    path = Path(f"/usr/lib/{platform.machine()}-linux-gnu") / OPENBLAS
    export = f"export LD_PRELOAD={path}"
    return export if path.exists() else f"sudo apt install libopenblas0-pthread; {export}"


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _folder(config: ServerConfig | None) -> Path | None:
    """Where the server writes; None where it writes nothing."""
    return None if config is None or config.usage_db is None else config.usage_db.parent


def disk(folder: Path | None) -> Finding:
    """Whether the server can write what it keeps, and how fast."""
    where = folder or Path(tempfile.gettempdir())
    try:
        rate = _write_speed(where)
        free = shutil.disk_usage(where).free
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return problem(f"{where}: cannot be written: {reason}", f"ls -ld {where}")
    said = f"{where}: {size(rate)}/s written and synced, {size(free)} free"
    if free < LEAST_FREE:
        return warning(said, f"df -h {where}")
    if rate < SLOW_DISK:
        return warning(f"{said}; slow", "keep it on a local disk: --usage-db FILE")
    return ok(said)


def _write_speed(folder: Path) -> float:
    """Bytes a second, until they are safe. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(PROBE // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        return PROBE / (time.perf_counter() - began)


def open_files(hard: int, config: ServerConfig | None) -> Finding:
    """Whether there can be as many connections as there are places."""
    if hard != resource.RLIM_INFINITY and hard < FILES:
        raised = f"ulimit -Hn {FILES}, as root; LimitNOFILE= or HardResourceLimits of a service"
        return problem(f"at most {hard} at once; mlx-lm fails with fewer than {FILES}", raised)
    places = 0 if config is None else config.service.max_rows + config.service.max_queue
    wanted = 2 * places + FILES_BESIDE
    if wanted > FILES:
        return warning(f"{FILES} at once; {wanted} are wanted for {places} places", "--max-queue N")
    return ok(f"{FILES} at once, for {places} places")


def sleep() -> Finding:
    """Whether a Mac stays awake with nobody at it."""
    try:
        shown = subprocess.run(
            ["pmset", "-g"], capture_output=True, text=True, timeout=5.0, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return warning("cannot be read", "pmset -g")
    return sleep_finding(shown.stdout)


def sleep_finding(shown: str) -> Finding:
    """The same by what ``pmset -g`` shows."""
    found = SLEEP.search(shown)
    if found is None:
        return warning("pmset does not tell", "pmset -g")
    if found[1] != "0":
        return warning(
            f"this Mac goes to sleep after {found[1]} minutes, and the server with it",
            "sudo pmset -a sleep 0",
        )
    return ok("this Mac stays awake")
