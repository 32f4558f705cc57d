"""What the device has and how MLX is set up on it: the one place where Metal differs.

Owned by the engine thread; knows nothing of models. The Metal branches follow MLX's
documentation and have been run only on the CPU backend so far.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx
import psutil

Backend = Literal["metal", "cuda", "cpu"]

MIB = 1 << 20
LEAST_KV = 64 * MIB
CPU_CACHE = 32 * MIB
CGROUP = Path("/sys/fs/cgroup")
MAPS = Path("/proc/self/maps")
WIRED_LIMIT = "iogpu.wired_limit_mb"
PROBE = 768  # rows and columns of the product that is timed


class Device(NamedTuple):
    """The device that MLX computes on; sizes in bytes.

    ``memory`` is all it has, ``recommended`` what this process may use of it: the recommended
    working set on Metal, nine tenths of the memory on CUDA, and on the CPU, where other
    programs live in the same memory, half of what is free when asked.
    """

    name: str
    backend: Backend
    memory: int
    recommended: int


def describe() -> Device:
    """The default device."""
    info = mx.device_info()
    name = str(info.get("device_name", "unknown"))
    backend = _backend()
    if backend == "cpu":
        limit, available = _host_memory()
        return Device(name, backend, limit, available // 2)
    memory = int(info.get("memory_size", info.get("total_memory", 0)))
    recommended = int(info.get("max_recommended_working_set_size", memory * 9 // 10))
    return Device(name, backend, memory, recommended)


def setup(weights_bytes: int, kv_bytes: int) -> None:
    """Tells MLX how much to keep resident and how many freed bytes to hold on to."""
    device = describe()
    if device.backend == "cpu":
        # Freed arrays go back to the allocator, whose reuse costs little here.
        mx.set_cache_limit(CPU_CACHE)
        return
    margin = _margin(device.recommended)
    mx.set_cache_limit(margin // 2)
    if device.backend == "metal":
        # Not tried on Metal. A limit above the recommended working set is an error there.
        wanted = weights_bytes + kv_bytes + margin
        mx.set_wired_limit(min(wanted, device.recommended))


def default_memory() -> int:
    """Bytes for weights and KV together that leave room for computing; at least 64 MiB.

    To be asked before anything is loaded.
    """
    device = describe()
    return max(device.recommended - _margin(device.recommended), LEAST_KV)


def default_kv_memory(weights_bytes: int) -> int:
    """Bytes of KV that leave room for the weights and for computing; at least 64 MiB.

    To be asked after the weights were loaded: on the CPU they are then already missing from
    the free memory, and ``weights_bytes`` counts only elsewhere.
    """
    device = describe()
    left = device.recommended - _margin(device.recommended)
    if device.backend != "cpu":
        left -= weights_bytes
    return max(left, LEAST_KV)


def active_memory() -> int:
    """Bytes in arrays that are alive, cached free buffers not counted."""
    return int(mx.get_active_memory())


def clear_cache() -> None:
    """Gives freed buffers back to the system."""
    mx.clear_cache()


def free_memory() -> int:
    """Bytes that other programs leave."""
    return _host_memory()[1]


def wired_limit() -> int | None:
    """What a Mac lets its GPU keep resident, in MiB; 0: its own default; None: not a Mac."""
    try:
        shown = subprocess.run(
            ["sysctl", "-n", WIRED_LIMIT], capture_output=True, text=True, timeout=5.0, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    text = shown.stdout.strip()
    return int(text) if text.isdigit() else None


def product_speed() -> float:
    """Floating-point operations a second of a float32 product; takes well under a second."""
    a = mx.random.normal((PROBE, PROBE))
    mx.eval(a, a @ a)
    began = time.perf_counter()
    mx.eval(a @ a)
    return 2.0 * PROBE**3 / (time.perf_counter() - began)


def openblas() -> Path | None:
    """The OpenBLAS in this process, if there is one; MLX's CPU backend then multiplies with it."""
    try:
        maps = MAPS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    paths = (line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line)
    # Others bring one of their own for themselves, under names of their own.
    found = (p for p in paths if "openblas" in p and Path(p).name.startswith("libblas.so"))
    return next(map(Path, found), None)


def openblas_core(library: Path) -> str | None:
    """The processor that OpenBLAS takes this one for."""
    try:
        name = ctypes.CDLL(str(library)).openblas_get_corename
    except (OSError, AttributeError):
        return None
    name.restype = ctypes.c_char_p
    return str(name().decode("ascii", "replace"))


def _backend() -> Backend:
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def _margin(recommended: int) -> int:
    """Bytes for activations, freed buffers and everything that is not MLX's."""
    return max(256 * MIB, recommended // 8)


def _host_memory() -> tuple[int, int]:
    """Bytes of memory and of free memory, as far as a container's limit allows."""
    memory = psutil.virtual_memory()
    limit = _read_number(CGROUP / "memory.max")
    used = _read_number(CGROUP / "memory.current")
    if limit is None or used is None or limit >= memory.total:
        return memory.total, memory.available
    return limit, min(memory.available, max(limit - used, 0))


def _read_number(path: Path) -> int | None:
    """The number in a file of the control group; None for no such file or no limit."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
