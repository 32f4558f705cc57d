"""Gets a model and its tokenizer from a directory or the model hub, or says why it cannot.

Runs on the engine thread, since arrays made elsewhere do not evaluate there. Knows nothing of
requests or caches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from mlx_lm import utils
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .pieces import Pieces, background, finish
from .weights import DTYPES, bring_in, nbytes, settle_dtype

Progress = Callable[[str], None]
T = TypeVar("T")

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.npz")  # pickles, or read like them
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
UNBOUNDED_CONTEXT = 1 << 20  # tokens; for models that name no limit
TOKEN_EMBEDDINGS = {
    *("embed_tokens", "embed", "embed_in", "embedding", "embeddings", "wte"),
    *("tok_embeddings", "token_embeddings", "word_embeddings"),
}
# What reading files that are damaged, or meant for other software, raises in mlx and mlx-lm.
BROKEN = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


class LoadError(Exception):
    """A model that cannot be served; one line that says why and what to do, safe to show."""


class Loaded(NamedTuple):
    """A model ready to run.

    ``max_context`` is in tokens. ``vocab_size`` is the number of token ids that the model both
    takes and gives; logits may be padded beyond it.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    path: Path
    max_context: int
    vocab_size: int
    eos_token_ids: frozenset[int]


class Opened(NamedTuple):
    """A model of which everything is known but the weights, which are not in memory yet."""

    network: nn.Module
    config: dict[str, Any]
    path: Path
    vocab_size: int
    own_eos: set[int]
    tokenizer: Future[TokenizerWrapper]

    @property
    def nbytes(self) -> int:
        """What the weights will take."""
        return nbytes(self.network)


def load(
    model: str,
    *,
    dtype: str | None,
    trust_remote_code: bool,
    max_context: int | None,
    progress: Progress,
) -> Loaded:
    """All of ``opening`` and ``filling`` at once."""
    opened = finish(
        opening(model, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress)
    )
    return finish(filling(opened, max_context, progress))


def opening(
    model: str, *, dtype: str | None, trust_remote_code: bool, progress: Progress
) -> Pieces[Opened]:
    """Finds a model directory or hub repository and builds the network, without its weights.

    ``dtype`` "float32", "bfloat16" or "float16" casts what is not quantised; None keeps what is
    stored. Code that comes with a model runs only with ``trust_remote_code``. Raises LoadError.
    """
    if dtype is not None and dtype not in DTYPES:
        raise LoadError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    found = background(lambda: _locate(model, progress))
    yield found
    path = _outcome(found)
    config = _check_directory(path, trust_remote_code)
    progress(f"reading {path.name}")
    own_eos = _config_eos(path)
    reading = background(lambda: _read_tokenizer(path, own_eos, trust_remote_code))
    yield None
    network, config = _read_model(path, config, trust_remote_code)
    settle_dtype(network, dtype, progress)
    return Opened(network, config, path, _vocab_size(network, path), own_eos, reading)


def filling(opened: Opened, max_context: int | None, progress: Progress) -> Pieces[Loaded]:
    """Reads the weights into memory, which must have been granted. Raises LoadError.

    ``max_context`` can only lower the model's own limit.
    """
    network, config, path, vocab_size, own_eos, reading = opened
    try:
        yield from bring_in(network)
    except RuntimeError as error:
        raise LoadError(
            f"cannot read the weights: {_line(error)}; check the files and the free memory"
        ) from error
    yield reading
    tokenizer = _outcome(reading)
    eos = _eos(tokenizer, own_eos, vocab_size, progress)
    limit = _context(network, config)
    context = limit if max_context is None else min(limit, max_context)
    return Loaded(network, tokenizer, config, path, context, vocab_size, eos)


def _outcome(future: Future[T]) -> T:
    """What work in the background came to. Raises LoadError.

    A new one: an error that went through a thread refers to its own frames, so that weights in
    the frames it comes through would wait for the garbage collector.
    """
    error = future.exception()
    if isinstance(error, LoadError):
        raise LoadError(str(error))
    return future.result()


# where it is


def _locate(model: str, progress: Progress) -> Path:
    """The directory of a model, downloaded if need be."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise LoadError(f"{model} is a file: give the directory that holds its config.json")
    if not REPO_ID.fullmatch(model):
        raise LoadError(
            f"no such directory: {model}; give a model directory, or a hub id like OWNER/NAME"
        )
    progress(f"looking for {model} in the local cache and on the model hub")
    try:
        return Path(utils._download(model))
    except GatedRepoError as error:
        raise LoadError(
            f"{model} needs its owner's permission: ask for it on the hub, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise LoadError(
            f"{model} is neither a directory nor on the hub: check the name, or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise LoadError(
            f"{model} is no directory, not downloaded yet, and the hub cannot be reached: "
            "check the network, or give a model directory"
        ) from error
    # The transport's own errors share a base with the hub's, whichever library it uses.
    except (*HfHubHTTPError.__bases__, OSError, ValueError) as error:
        raise LoadError(f"cannot download {model}: {_line(error)}; try again") from error


def _check_directory(path: Path, trust_remote_code: bool) -> dict[str, Any]:
    """The configuration, after what can be told before any weight is read."""
    if not (path / "config.json").is_file():
        raise LoadError(f"{path} is not a model directory: it has no config.json")
    config = _read_json(path / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise LoadError(f"{path / 'config.json'} names no model_type: is this a language model?")
    if config.get("model_file") is not None and not trust_remote_code:
        raise LoadError(
            f"{path} brings its own code ({config['model_file']}): read it, and if you trust it "
            "start again with --trust-remote-code"
        )
    _check_weights(path)
    return config


def _check_weights(path: Path) -> None:
    present = {p.name for p in path.glob("model*.safetensors")}
    if not present:
        other = next((p.name for pattern in UNSAFE for p in path.glob(pattern)), None)
        found = "" if other is None else f" (only {other}, a format that can run code or is old)"
        raise LoadError(f"{path} has no model*.safetensors{found}: convert it with mlx_lm.convert")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        parts = _read_json(index).get("weight_map")
        named = set(parts.values()) if isinstance(parts, dict) else set()
        if missing := sorted(named - present):
            raise LoadError(
                f"{path} is incomplete: {missing[0]} and {len(missing) - 1} more of "
                f"{len(named)} weight files are missing; download it again"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {path}: {_line(error)}; download it again") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} is not a JSON object; download it again")
    return value


# what is in it


def _read_model(
    path: Path, config: dict[str, Any], trust_remote_code: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with lazy parameters, and its configuration as mlx-lm completed it."""
    if config.get("model_file") is None:
        try:
            utils._get_classes(config)
        except ValueError as error:
            raise LoadError(
                f"mlx-lm has no model of type {config['model_type']!r}: choose another model, "
                "or a newer mlx-lm"
            ) from error
    try:
        network, config = utils.load_model(path, lazy=True, trust_remote_code=trust_remote_code)
    except BROKEN as error:
        raise LoadError(
            f"cannot load {path}: {_line(error)}; the files are damaged, incomplete or do not "
            "belong together: download or convert the model again"
        ) from error
    return network, config


def _vocab_size(network: nn.Module, path: Path) -> int:
    """How many token ids the model takes and gives, by its own shapes."""
    try:
        # Never evaluated: the shape of the logits is known before.
        logits = network(mx.array([[0]]), cache=make_prompt_cache(network))
        outputs = int(logits.shape[-1])
    except BROKEN as error:
        raise LoadError(f"{path} is not a text-generation model: {_line(error)}") from error
    rows = [
        int(module.weight.shape[0])
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in TOKEN_EMBEDDINGS
        and isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
    ]
    return min([outputs, *rows])


def _read_tokenizer(path: Path, eos: Iterable[int], trust_remote_code: bool) -> TokenizerWrapper:
    # Left unset, transformers would ask on the terminal whether to run a tokenizer's code.
    extra = {"trust_remote_code": trust_remote_code}
    try:
        return utils.load_tokenizer(path, extra, eos_token_ids=list(eos) or None)
    except Exception as error:  # the tokenizers library raises this very class
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise LoadError(
                f"the tokenizer of {path} brings its own code: read it, and if you trust it "
                "start again with --trust-remote-code"
            ) from error
        raise LoadError(
            f"cannot load the tokenizer of {path}: {_line(error)}; tokenizer.json and "
            "tokenizer_config.json must lie beside the weights"
        ) from error


def _eos(
    tokenizer: TokenizerWrapper, own: Iterable[int], vocab_size: int, progress: Progress
) -> frozenset[int]:
    """The end-of-sequence ids that the model can give."""
    if len(tokenizer) > vocab_size:
        extra = len(tokenizer) - vocab_size
        progress(f"the tokenizer has {extra} tokens more than the model; they cannot be used")
    eos = frozenset(i for i in {*tokenizer.eos_token_ids, *own} if 0 <= i < vocab_size)
    if not eos:
        progress("the model names no end-of-sequence token: replies end at max_tokens")
    return eos


def _config_eos(path: Path) -> set[int]:
    """The end-of-sequence ids that the configuration files name."""
    config = _read_json(path / "config.json")
    sources = [config, config.get("text_config")]
    if (path / "generation_config.json").is_file():
        sources.append(_read_json(path / "generation_config.json"))
    found: set[int] = set()
    for source in sources:
        value = source.get("eos_token_id") if isinstance(source, dict) else None
        ids = value if isinstance(value, list) else [value]
        found.update(i for i in ids if type(i) is int)
    return found


def _context(network: nn.Module, config: dict[str, Any]) -> int:
    """The model's own limit in tokens."""
    args = vars(network.args) if hasattr(network, "args") else {}
    for source in (config.get("text_config"), config, args):
        if isinstance(source, dict):
            for key in CONTEXT_KEYS:
                if type(source.get(key)) is int and source[key] > 0:
                    return int(source[key])
    return UNBOUNDED_CONTEXT


def _line(error: BaseException) -> str:
    """What an exception says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
