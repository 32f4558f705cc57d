"""Writes the dashboards: ``python -m deploy.grafana.build``. What it writes is committed."""

from __future__ import annotations

import json
from pathlib import Path

from .cache import cache
from .overview import overview
from .tenants import tenants

FOLDER = Path(__file__).parent / "dashboards"
PAGES = {"overview": overview, "cache": cache, "tenants": tenants}


def rendered() -> dict[str, str]:
    """The text of each file, by its name."""
    return {f"{name}.json": json.dumps(page(), indent=2) + "\n" for name, page in PAGES.items()}


def main() -> None:
    """Writes all files."""
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
