"""Which drafts a model can have, and the loading of a draft model. Engine thread only."""

from __future__ import annotations

from typing import Any, NamedTuple

from .loader import Loaded, LoadError, Progress, load
from .network import is_stateful
from .selfcheck import lends_correctly
from .variant import NGRAM


class Drafts(NamedTuple):
    """The drafts that requests may name, the first one by default.

    ``off`` says why there are none, where some were asked for.
    """

    names: tuple[str, ...] = ()
    off: str | None = None


def why_not(attention: str, stateful: bool) -> str | None:
    """Why nothing can be verified for such a model, None where it can."""
    if stateful:
        return "layers with a sliding window or a recurrent state cannot take tokens back"
    if attention == "copied":
        return "this model computes attention in its own way"
    return None


def load_draft(
    model: str, target: Loaded, *, dtype: str | None, trust_remote_code: bool, progress: Progress
) -> Loaded:
    """Loads a draft model that fits ``target``. Raises LoadError."""
    draft = load(
        model,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        max_context=None,
        progress=progress,
    )
    difference = _different_tokens(target, draft)
    if difference is not None:
        raise LoadError(
            f"the draft model {draft.path} has another tokenizer than {target.path} "
            f"({difference}): choose a draft of the same family"
        )
    progress("checking the draft model's attention over lent blocks against mlx-lm")
    if is_stateful(draft.model) or not lends_correctly(draft):
        raise LoadError(
            f"{draft.path} cannot be a draft: its layers keep more than keys and values by token"
        )
    if draft.max_context < target.max_context:
        progress(
            f"the draft model was made for {draft.max_context} tokens of context: behind them "
            "its proposals will be poor"
        )
    return draft


def offered(model: str | None, name: str | None) -> tuple[str, ...]:
    """The names under which requests choose a draft, where ``model`` was asked for."""
    if model is None:
        return ()
    return (NGRAM,) if model == NGRAM or name is None else (name, NGRAM)


def _different_tokens(target: Loaded, draft: Loaded) -> str | None:
    """The first token that means something else to the draft, in words."""
    ours, theirs = _by_id(target), _by_id(draft)
    for number in range(min(target.vocab_size, draft.vocab_size)):
        a, b = ours.get(number), theirs.get(number)
        if a is not None and a != b:
            return f"token {number} is {a!r} there and {b!r} here"
    return None


def _by_id(loaded: Loaded) -> dict[int, str]:
    vocabulary: Any = loaded.tokenizer.get_vocab()
    return {number: token for token, number in vocabulary.items()}
