"""What must be equal for two requests to share KV, and the digests that make it so.

Pure functions of files, on any thread. Knows nothing of what the files mean to a model.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

WHOLE = 16 << 20  # bytes; a file up to this size is read whole
SAMPLES, SAMPLE = 8, 64 << 10  # of a larger file: how many places, and bytes at each
HEADER = 100_000_000  # bytes; what the safetensors format allows its header


PUBLIC_DOMAIN = "\0public"  # what it holds is lent to all; no name of a tenant's domain is such


class Namespace(NamedTuple):
    """The name of one prefix tree. Requests of different namespaces never see each other's KV.

    ``model``: digest of the weights and configuration; keys and values are its function, and a
    replaced file under the same name must not meet the KV of its predecessor.
    ``adapter``: digest of the LoRA adapter, "" for none; it changes the projections that make
    keys and values, so the same tokens have other KV under each adapter.
    ``draft``: digest of the draft model, "" for none; a row's draft state is kept along with its
    KV, and that of one draft model means nothing to another.
    ``domain``: the trust domain of the tenant. Whether a prompt was cached shows in its timing
    and its usage, so tenants who must not learn of each other's prompts need trees of their own.
    """

    model: str
    adapter: str = ""
    draft: str = ""
    domain: str = "default"


def weights_digest(directory: Path) -> str:
    """A digest (32 hex digits) of the model or adapter in ``directory``.

    It covers the relative names of all files below the directory, links to files followed,
    except hidden ones (download bookkeeping) and bytecode. Files up to 16 MiB are covered by
    content alone, so a copy of a small model has the digest of the original. Larger ones are
    covered by size, modification time, safetensors header (names, types and shapes of all
    tensors) and eight samples of 64 KiB from the first to the last byte, so that 100 GB take
    milliseconds.

    So a file that is added, removed, renamed, rewritten or replaced by another changes the
    digest. Not seen is only a large file that was changed between the samples, with header and
    size kept, and whose modification time was set back on purpose.

    Raises NotADirectoryError where there is no such directory, OSError for an unreadable file.
    """
    if not directory.is_dir():
        raise NotADirectoryError(f"not a directory: {directory}")
    digest = blake2b(digest_size=16)
    for name, path in _files(directory):
        stat = path.stat()
        if stat.st_size <= WHOLE:
            parts = [path.read_bytes()]
        else:
            parts = [b"%d %d" % (stat.st_size, stat.st_mtime_ns), *_samples(path, stat.st_size)]
        # Every part is preceded by its length, so that no two lists of parts run together alike.
        for part in [name, b"%d" % len(parts), *parts]:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _files(directory: Path) -> list[tuple[bytes, Path]]:
    found = []
    for path in directory.rglob("*"):
        parts = path.relative_to(directory).parts
        if any(p.startswith(".") or p == "__pycache__" for p in parts) or not path.is_file():
            continue
        found.append((os.fsencode("/".join(parts)), path))
    return sorted(found)


def _samples(path: Path, size: int) -> list[bytes]:
    """The safetensors header of a file larger than all samples, if it has one, and the samples."""
    with path.open("rb") as file:
        header = b""
        if path.suffix == ".safetensors":
            # The length is not to be trusted: what does not fit is no header, and the loader says.
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= min(size - 8, HEADER) else b""
        samples = []
        for i in range(SAMPLES):
            file.seek((size - SAMPLE) * i // (SAMPLES - 1))
            samples.append(file.read(SAMPLE))
    return [header, *samples]
