"""``commons`` with a device that fails as soon as two rows are decoded together."""

from __future__ import annotations

from collections.abc import Sequence

from engine.engine import Engine
from engine.rows import Row
from server import cli

SECRET = "device lost at 0xDEADBEEF"

_submit = Engine.submit


def submit(self: Engine, rows: Sequence[Row], left: Sequence[int] | None = None) -> None:
    if len(rows) > 1:
        raise RuntimeError(SECRET)
    _submit(self, rows, left)


if __name__ == "__main__":
    Engine.submit = submit  # type: ignore[method-assign]
    cli.main()
