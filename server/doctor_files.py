"""What ``commons doctor`` checks of the disks that models are read from."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .config import ServerConfig
from .finding import Finding, ok, problem, size, warning

CHUNK = 8 << 20  # bytes read at once
DIRECT = getattr(os, "O_DIRECT", 0)  # Linux alone has it
LEAST_TOLD = 32 << 20  # bytes; a smaller file tells nothing of a disk
MOST_READ = 512 << 20  # bytes
READ_SECONDS = 2.0  # in which the speed is told from what came so far
SLOW_READ = 100e6  # bytes a second
LEAST_FREE = 1e9  # bytes
LEAST_FETCH = 20e9  # bytes; what a model from the hub may take


class Weights(NamedTuple):
    """A file of weights, or a folder that has none."""

    nbytes: int
    folder: Path
    file: Path


class Part(NamedTuple):
    """A model, adapter or draft: what it is called, where it is, and the file that it must have."""

    what: str
    where: str
    file: str

    @property
    def path(self) -> Path:
        """Where it is, if it is a folder."""
        return Path(self.where).expanduser()

    @property
    def remote(self) -> bool:
        """Whether it comes from the hub: no such folder, and a name that a repository can have."""
        named = self.where.startswith(("/", "~", ".")) or self.where.count("/") != 1
        return not (named or self.path.exists())


def parts(config: ServerConfig) -> Iterator[Part]:
    """Everything that is to be loaded."""
    for model in config.service.all_models:
        yield Part(f"model {model.name!r}", model.model, "config.json")
        for name, path in model.adapters:
            yield Part(f"adapter {name!r}", path, "adapter_config.json")
        if model.draft_model not in (None, "ngram"):
            yield Part(f"the draft of {model.name!r}", str(model.draft_model), "config.json")


def model_disk(config: ServerConfig) -> Finding:
    """How fast the weights come from the folders of the models, and what room these have."""
    return disks(part.path for part in parts(config) if part.path.is_dir())


def disks(folders: Iterable[Path]) -> Finding:
    """The same of any folders; each disk is told once, by the largest file on it."""
    largest: dict[int, Weights] = {}
    for folder in folders:
        disk = folder.stat().st_dev
        files = (Weights(f.stat().st_size, folder, f) for f in folder.glob("*.safetensors"))
        here = max(files, default=Weights(0, folder, folder))
        largest[disk] = max(largest.get(disk, here), here)
    if not largest:
        return ok("no model is read from a folder")
    found = [_disk(*weights) for weights in largest.values()]
    worst = next((each for each in found if each.status != "ok"), found[0])
    return Finding(worst.status, "; ".join(each.message for each in found), worst.fix)


def _disk(nbytes: int, folder: Path, file: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    said = f"{folder}: {size(free)} free"
    if nbytes >= LEAST_TOLD:
        try:
            rate = read_speed(file)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            return problem(f"{file}: cannot be read: {reason}", f"ls -l {file}")
        said += f", {size(rate)}/s read, which is {nbytes / rate:.0f} s for {file.name}"
        if rate < SLOW_READ:
            local = f"cp -R {folder} LOCAL_FOLDER; --model LOCAL_FOLDER"
            return warning(f"{said}; slow", local)
    if free < LEAST_FREE and os.access(folder, os.W_OK):
        return warning(said, f"df -h {folder}")
    return ok(said)


def read_speed(file: Path) -> float:
    """Bytes a second, from the disk and not from memory where the system can. Raises OSError."""
    if DIRECT:
        with contextlib.suppress(OSError):  # not every file system can
            return _read(file, DIRECT)
    return _read(file, 0)


def _read(file: Path, flags: int) -> float:
    def opener(path: str, mode: int) -> int:
        return os.open(path, mode | flags)

    # A mapping lies where direct reads need their buffer.
    with open(file, "rb", buffering=0, opener=opener) as opened, mmap.mmap(-1, CHUNK) as buffer:
        if sys.platform == "darwin":
            fcntl.fcntl(opened.fileno(), fcntl.F_NOCACHE, 1)
        done, seconds, began = 0, 0.0, time.perf_counter()
        while done < MOST_READ and seconds < READ_SECONDS:
            count = opened.readinto(buffer) or 0
            done += count
            seconds = time.perf_counter() - began
            if count < CHUNK:
                break
        return done / max(seconds, 1e-9)


def hub(repositories: Iterable[str]) -> Finding:
    """Whether models that come from the hub are in its cache, or may be fetched into it."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    found = {r: try_to_load_from_cache(r, "config.json", cache_dir=cache) for r in repositories}
    missing = [name for name, file in found.items() if not isinstance(file, str)]
    if not missing:
        return disks(Path(str(file)).parent for file in found.values())
    names = ", ".join(missing)
    if constants.HF_HUB_OFFLINE:
        return problem(
            f"{names}: not in {cache}, and HF_HUB_OFFLINE is set",
            "; ".join(f"HF_HUB_OFFLINE=0 hf download {name}" for name in missing),
        )
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(place, os.W_OK):
        return problem(f"{names}: {place} cannot be written", "export HF_HOME=FOLDER")
    free = shutil.disk_usage(place).free
    said = f"{names}: to be fetched into {cache}, which has {size(free)} free"
    if free < LEAST_FETCH:
        return warning(said, f"df -h {place}; export HF_HOME=FOLDER_WITH_ROOM")
    return ok(said)
