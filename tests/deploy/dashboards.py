"""The committed dashboards, and the queries in them."""

from __future__ import annotations

import json
import re
from typing import Any

from deploy.grafana.build import FOLDER

VARIABLE = re.compile(r"\$(\w+)")
WINDOW = "30s"
BUILT_IN = {"__rate_interval": WINDOW, "__range": WINDOW}


def pages() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def variables(page: Any) -> set[str]:
    return {v["name"] for v in page["templating"]["list"]}


def queries() -> list[tuple[str, str]]:
    """Page with panel, and expression, of all targets."""
    return [
        (f"{name}: {panel['title']} {target['refId']}", target["expr"])
        for name, page in pages().items()
        for panel in page["panels"]
        for target in panel["targets"]
    ]


def filled_in(expr: str) -> str:
    """An expression as Grafana would send it with everything chosen."""
    return VARIABLE.sub(lambda found: BUILT_IN.get(found[1], ".*"), expr)
