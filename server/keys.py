"""The keys file beside the settings file: for each key its hash, and whom it stands for.

One line a key: ``sha256:DIGEST NAME CREATED``. The keys themselves are written nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from .settings_file import ConfigError

PREFIX = "commons-"
RANDOM_BYTES = 32
ID_LENGTH = 12  # hex digits; enough to tell apart the keys of one file
MODE = 0o600
HEADER = "# Hashes of API keys, written by `commons keys`. One line a key: hash, name, created.\n"
LINE = re.compile(r"sha256:([0-9a-f]{64})[ \t]+(\S+)[ \t]+(\S+)")


class Key(NamedTuple):
    """What is kept of a key; ``name`` is a tenant or what else it opens, ``created`` UTC."""

    digest: bytes
    name: str
    created: str = ""

    @property
    def id(self) -> str:
        """What a person calls it; it does not help to guess the key."""
        return self.digest.hex()[:ID_LENGTH]


def digest_of(key: bytes) -> bytes:
    """The hash by which a key is known.

    A fast one is right here: the keys that we make hold 256 random bits, which nobody finds by
    trying, however fast that is. Slow hashes protect what people make up; at every request they
    would cost more than they protect.
    """
    return hashlib.sha256(key).digest()


def keys_path(config: Path) -> Path:
    """The keys file that belongs to a settings file."""
    path = config.with_suffix(".keys")
    return path if path != config else config.with_name(f"{config.name}.keys")


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file, none where there is no file.

    Raises ConfigError, which names the line, also for a file that others could write to.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: this is not UTF-8 text") from error
    if mode & ~MODE:
        raise ConfigError(f"{path} is open to others (mode {mode:04o}): run `chmod 600 {path}`")
    return _parse(path, text)


def _parse(path: Path, text: str) -> tuple[Key, ...]:
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line.strip())
        if not found:
            raise ConfigError(f"{path}:{number}: this is no key: 'sha256:HASH NAME CREATED'")
        key = Key(bytes.fromhex(found[1]), found[2], found[3])
        if key.digest in keys:
            first = keys[key.digest].name
            raise ConfigError(
                f"{path}:{number}: the key of {key.name!r} is given twice, first for {first!r}"
            )
        keys[key.digest] = key
    return tuple(keys.values())


def new_key(path: Path, name: str) -> str:
    """Makes a key for ``name`` and keeps its hash in the file. Raises ConfigError."""
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with _changing(path) as keys:
        keys.append(Key(digest_of(key.encode("ascii")), name, created))
    return key


def revoke_key(path: Path, start: str) -> Key:
    """Forgets the one key whose id begins with ``start``. Raises ConfigError."""
    with _changing(path) as keys:
        found = [key for key in keys if start and key.digest.hex().startswith(start.lower())]
        if not found:
            raise ConfigError(f"{path}: there is no key with the id {start!r}")
        if len(found) > 1:
            ids = ", ".join(key.id for key in found)
            raise ConfigError(f"{path}: several keys begin with {start!r}: {ids}")
        keys.remove(found[0])
    return found[0]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed by one process at a time; written unless it raises."""
    path = path.resolve()  # a link stays one
    try:
        with _locked(path.parent):
            keys = list(read_keys(path))
            yield keys
            _write(path, keys)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The folder, not the file: that is replaced, and a lock on what it was holds nobody back.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replaces the file at once, so that whoever reads it sees the old or the new one."""
    lines = [f"sha256:{key.digest.hex()} {key.name} {key.created}\n" for key in keys]
    # Made with MODE, in the same folder.
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        _keep_owner(descriptor, path)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(HEADER + "".join(lines))
            file.flush()
            os.fsync(file.fileno())
        Path(made).replace(path)
    except BaseException:  # also an interrupt: nothing half-written may stay beside the keys
        Path(made).unlink()
        raise


def _keep_owner(descriptor: int, path: Path) -> None:
    """Leaves a file that an administrator changes to the user whose server reads it."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        old = path.stat()
        os.fchown(descriptor, old.st_uid, old.st_gid)
