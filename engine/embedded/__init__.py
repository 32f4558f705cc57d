"""Where the model that ships with the package lies; knows nothing of how it is loaded."""

from __future__ import annotations

from pathlib import Path

NAME = "commons-tiny"


def path() -> Path:
    """The model directory (config, float16 weights, tokenizer, chat template)."""
    return Path(__file__).resolve().parent / NAME
