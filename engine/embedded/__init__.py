"""Where the model that ships with the package lies; knows nothing of how it is loaded."""

from __future__ import annotations

from pathlib import Path

NAME = "commons-tiny"
DRAFT_NAME = "commons-tiny-draft"


def path() -> Path:
    """The model directory (config, float16 weights, tokenizer, chat template)."""
    return Path(__file__).resolve().parent / NAME


def draft_path() -> Path:
    """The model directory of its draft, which has the same tokenizer."""
    return path().parent / DRAFT_NAME
