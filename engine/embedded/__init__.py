"""Where the models that ship with the package lie; knows nothing of how they are loaded."""

from __future__ import annotations

from pathlib import Path

NAME = "commons-tiny"
DRAFT_NAME = "commons-tiny-draft"
ADAPTERS = ("pirate", "polite")


def path() -> Path:
    """The model directory (config, float16 weights, tokenizer, chat template)."""
    return Path(__file__).resolve().parent / NAME


def draft_path() -> Path:
    """The model directory of its draft, which has the same tokenizer."""
    return path().parent / DRAFT_NAME


def adapter_paths() -> dict[str, Path]:
    """The directories of its LoRA adapters, by name."""
    return {name: path().parent / "adapters" / name for name in ADAPTERS}
