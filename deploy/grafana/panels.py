"""The parts of a dashboard as Grafana's JSON model has them, as plain dicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

COLUMNS = 24  # of Grafana's grid
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
PLAIN: Sequence[tuple[float | None, str]] = ((None, "blue"),)
SCHEMA = 39  # version of the JSON model; Grafana brings older ones up to date


class Query(NamedTuple):
    """A PromQL expression and what its series are called."""

    expr: str
    legend: str = ""


class Panel(NamedTuple):
    """What one panel shows; ``more`` goes over the options of its ``kind``.

    ``unit`` is one of Grafana's names. ``instant`` queries give one value for the time range.
    """

    title: str
    text: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"
    stacked: bool = False
    instant: bool = False
    most: float | None = None
    steps: Sequence[tuple[float | None, str]] = ()
    more: Json | None = None


class Line(NamedTuple):
    """Panels side by side, of equal width."""

    height: int
    panels: Sequence[Panel]


def dashboard(
    uid: str, title: str, text: str, variables: Sequence[Json], lines: Iterable[Line]
) -> Json:
    """A whole dashboard."""
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["commons"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_variable(), *variables]},
        "links": [_link()],
        "annotations": {"list": []},
        "panels": list(_placed(lines)),
    }


def variable(name: str, query: str) -> Json:
    """A choice among a label's values, at first all of them."""
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _source_variable() -> Json:
    return {
        "name": "datasource",
        "label": "source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
        "options": [],
    }


def _link() -> Json:
    return {
        "type": "dashboards",
        "title": "commons",
        "tags": ["commons"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }


def _placed(lines: Iterable[Line]) -> Iterable[Json]:
    """Panels with their numbers and places, line below line."""
    number, top = 1, 0
    for line in lines:
        width = COLUMNS // len(line.panels)
        for column, panel in enumerate(line.panels):
            place = {"x": column * width, "y": top, "w": width, "h": line.height}
            yield _panel(panel, number, place)
            number += 1
        top += line.height


def _panel(panel: Panel, number: int, place: Json) -> Json:
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(panel, i, query) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }
    return made | (panel.more or {})


def _target(panel: Panel, index: int, query: Query) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": panel.instant,
        "range": not panel.instant,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _defaults(panel: Panel) -> Json:
    # Without steps Grafana would put its own in, and paint everything above 80 red.
    steps = [{"value": value, "color": color} for value, color in panel.steps or PLAIN]
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        fill, mode = (40, "normal") if panel.stacked else (10, "none")
        defaults["custom"] = {
            "fillOpacity": fill,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": mode, "group": "A"},
        }
    return defaults


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind in ("stat", "bargauge"):
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduce, "orientation": "auto"}
    return {}
