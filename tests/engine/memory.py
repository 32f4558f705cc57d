"""MLX's own count of bytes."""

from __future__ import annotations

import mlx.core as mx


def active_bytes() -> int:
    """What all arrays take, those included that are still being computed."""
    mx.synchronize()
    return mx.get_active_memory()
