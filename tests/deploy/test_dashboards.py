"""The dashboards are what their code renders, and what Grafana can show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.build import FOLDER, rendered
from deploy.grafana.panels import COLUMNS

from .dashboards import BUILT_IN, VARIABLE, pages, queries, variables
from .prometheus import DEPLOY

UNITS = {"short", "bytes", "s", "reqps", "percentunit"}
KINDS = {"timeseries", "stat", "table", "heatmap", "bargauge"}
PAGES = pages()


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or below)


def test_what_is_committed_is_what_the_code_renders() -> None:
    texts = rendered()
    assert {path.name for path in FOLDER.iterdir()} == texts.keys()
    for name, text in texts.items():
        assert (FOLDER / name).read_text() == text, "run `make dashboards`"


def test_names_are_unique() -> None:
    for key in ("uid", "title"):
        assert len({page[key] for page in PAGES.values()}) == len(PAGES) == 3


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_panels_have_places_of_their_own(page: Any) -> None:
    panels = page["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 5
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS
        assert place["w"] > 0 and place["h"] > 0
    for one, other in combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_panels_say_what_they_show(page: Any) -> None:
    for panel in page["panels"]:
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["type"] in KINDS
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["targets"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len({*letters}) == len(letters)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_everything_comes_from_the_chosen_source(page: Any) -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert page["templating"]["list"][0]["name"] == "datasource"
    for holder in (*page["panels"], *page["templating"]["list"][1:]):
        assert holder["datasource"] == source
    for panel in page["panels"]:
        assert all(target["datasource"] == source for target in panel["targets"])


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_queries_use_the_variables_of_their_page(page: Any) -> None:
    used: set[str] = set()
    for panel in page["panels"]:
        for target in panel["targets"]:
            used |= {*VARIABLE.findall(target["expr"])}
    assert used - BUILT_IN.keys() == variables(page) - {"datasource"}


def missing(given: Any, read: Any, at: str) -> Iterator[str]:
    """What of ``given`` did not come through, by its place."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from missing(value, read.get(key), f"{at}.{key}")
    elif isinstance(given, list):
        assert len(given) == len(read), at
        for i, value in enumerate(given):
            yield from missing(value, read[i], f"{at}[{i}]")
    elif given != read:
        yield at


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_grafanas_own_types_know_every_field(page: Any) -> None:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(page)))
    # Grafana itself writes "definition", to show it in the list of variables.
    assert [at for at in missing(page, read, "page") if not at.endswith(".definition")] == []


def test_the_cache_page_has_a_matrix_of_lenders_and_borrowers() -> None:
    (matrix,) = (p for p in PAGES["cache"]["panels"] if p["type"] == "table")
    (step,) = matrix["transformations"]
    assert step["id"] == "groupingToMatrix"
    assert (step["options"]["rowField"], step["options"]["columnField"]) == ("lender", "borrower")
    assert matrix["fieldConfig"]["defaults"]["custom"]["cellOptions"]["type"] == "color-background"


def test_provisioning_names_what_is_there() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9090")
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "commons.yml").read_text())["providers"]
    path = provider["options"]["path"].replace("${COMMONS_DEPLOY}", str(DEPLOY))
    assert path == str(FOLDER)


def test_every_query_reads_the_servers_own_metrics() -> None:
    for name, expr in queries():
        assert "commons" in expr, name
