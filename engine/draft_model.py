"""What drafts a model can have, and the loading of a draft model. Engine thread only."""

from __future__ import annotations

from typing import Any

from .loader import Loaded, LoadError, Opened, Progress, filling, opening
from .network import is_stateful
from .pieces import Pieces, finish
from .selfcheck import checking


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
    """Opens a draft model and does all of ``fitting`` at once."""
    opened = finish(
        opening(model, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress)
    )
    return finish(fitting(opened, target, progress))


def fitting(opened: Opened, target: Loaded, progress: Progress) -> Pieces[Loaded]:
    """Brings a draft model into memory and checks that it fits ``target``. Raises LoadError."""
    draft = yield from filling(opened, None, progress)
    difference = _different_tokens(target, draft)
    if difference is not None:
        raise LoadError(
            f"the draft model {draft.path} has another tokenizer than {target.path} "
            f"({difference}): choose a draft of the same family"
        )
    progress("checking the draft model's attention over lent blocks against mlx-lm")
    if is_stateful(draft.model) or not (yield from checking(draft)):
        raise LoadError(
            f"{draft.path} cannot be a draft: its layers keep more than keys and values by token"
        )
    if draft.max_context < target.max_context:
        progress(
            f"the draft model was made for {draft.max_context} tokens of context: behind them "
            "its proposals will be poor"
        )
    return draft


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
