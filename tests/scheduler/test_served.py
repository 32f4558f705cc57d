"""What the names in requests mean, with several models and their adapters."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from scheduler.info import ModelConfig
from scheduler.metrics import Metrics
from scheduler.served import Catalogue, Served
from scheduler.streams import UnknownAdapter, UnknownModel


@pytest.fixture
def catalogue() -> Catalogue:
    metrics = Metrics(CollectorRegistry())
    adapters = {"main": ("sql", "style"), "b:1": ("sql", "tone"), "org/c": ()}
    return Catalogue(
        Served(ModelConfig(name, "m", adapters=tuple((a, "p") for a in own)), metrics.model(name))
        for name, own in adapters.items()
    )


@pytest.mark.parametrize(
    ("model", "adapter", "means"),
    [
        ("main", None, ("main", None)),
        ("b:1", None, ("b:1", None)),
        ("org/c", None, ("org/c", None)),
        ("main", "sql", ("main", "sql")),
        ("b:1", "sql", ("b:1", "sql")),
        ("main:style", None, ("main", "style")),
        ("main:style", "style", ("main", "style")),
        ("b:1:sql", None, ("b:1", "sql")),
        ("sql", None, ("main", "sql")),  # of the first that has it
        ("tone", None, ("b:1", "tone")),
    ],
)
def test_names(catalogue: Catalogue, model: str, adapter: str | None, means: tuple) -> None:
    served, found = catalogue.resolve(model, adapter)
    assert (served.name, found) == means


@pytest.mark.parametrize("model", ["", "b", "main:", "main:none", "org/c:sql", "main:tone", ":sql"])
def test_unknown_models(catalogue: Catalogue, model: str) -> None:
    with pytest.raises(UnknownModel):
        catalogue.resolve(model)


@pytest.mark.parametrize(
    ("model", "adapter"),
    [("main", "none"), ("main", "tone"), ("main:sql", "style"), ("org/c", "sql")],
)
def test_unknown_adapters(catalogue: Catalogue, model: str, adapter: str) -> None:
    with pytest.raises(UnknownAdapter):
        catalogue.resolve(model, adapter)


def test_series_of_all_adapters_and_drafts_start_at_zero() -> None:
    registry = CollectorRegistry()
    config = ModelConfig("m", "m", adapters=(("sql", "p"),), draft_model="d", draft_name="small")
    served = Served(config, Metrics(registry).model("m"))
    served.add_adapter("late", "p")
    for adapter in ("", "sql", "late"):
        for draft in ("", "small", "ngram"):
            labels = {"model": "m", "adapter": adapter, "draft": draft}
            assert registry.get_sample_value("commons_draft_tokens_total", labels) == 0


def test_the_first_is_the_main_one(catalogue: Catalogue) -> None:
    assert catalogue.main is catalogue["main"]
    assert [served.name for served in catalogue] == ["main", "b:1", "org/c"]
    with pytest.raises(UnknownModel):
        catalogue["sql"]
