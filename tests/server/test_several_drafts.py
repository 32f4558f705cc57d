"""Several base models, each with drafts of its own, which come and go with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.models import make
from tests.oracle import Oracle

from .process import PATIENCE, Server
from .several import weights
from .support import decisive, ids, poll, scrape, text_of

NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model that has a draft: itself."""
    return make("llama", tmp_path_factory.mktemp("models") / "small", seed=12)


@pytest.fixture(scope="module")
def http(
    folder: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    file = tmp_path_factory.mktemp("server") / "commons.toml"
    file.write_text(
        f'model = "{tiny}"\nserved-model-name = "main"\ndraft-model = "ngram"\n'
        f'[models.drafted]\nmodel = "{folder}"\ndraft_model = "{folder}"\n'
        f'[models.plain]\nmodel = "{folder}"\nnum-draft-tokens = 2\n'
    )
    with (
        Server("--config", str(file)) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as client,
    ):
        yield client


def ask(http: httpx.Client, model: str, prompt: list[int], **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0}
    return http.post("/v1/completions", json=body | more)


def drafts(http: httpx.Client, model: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = http.get(f"/v1/models/{model}").json()["drafts"]
    return found


def test_each_model_has_its_own(http: httpx.Client) -> None:
    for name in ("drafted", "plain"):
        http.delete(f"/admin/models/{name}")
        assert drafts(http, name) is None
        assert ask(http, name, ids(9, 1)).status_code == 200
    assert drafts(http, "main") == {"models": ["ngram"], "off": None}
    assert drafts(http, "drafted") == {"models": ["small", "ngram"], "off": None}
    assert drafts(http, "plain") == {"models": [], "off": None}


@pytest.mark.parametrize(("model", "draft"), [("main", "small"), ("plain", "ngram")])
def test_the_draft_of_another_model_is_not_found(
    http: httpx.Client, model: str, draft: str
) -> None:
    answer = ask(http, model, ids(9, 2), draft_model=draft)
    assert answer.status_code == 404
    found = answer.json()["error"]
    assert (found["code"], found["param"]) == ("model_not_found", "draft_model")
    assert f"The model {model!r} has no draft {draft!r}" in found["message"]


def test_a_draft_that_no_setting_names_does_not_load_its_model(http: httpx.Client) -> None:
    http.delete("/admin/models/plain")
    assert ask(http, "plain", ids(9, 2), draft_model="small").status_code == 404
    assert drafts(http, "plain") is None


@pytest.mark.parametrize("draft", ["small", "ngram", None])
def test_replies_are_those_of_a_cold_run_and_counted_for_model_and_draft(
    http: httpx.Client, folder: Path, draft: str | None
) -> None:
    oracle = Oracle(folder)
    prompt, cold = decisive(oracle, 60, NEW, 406)
    label = {"model": "drafted", "draft": draft or ""}
    before = scrape(http)("requests_total", **label)
    answer = ask(http, "drafted", prompt, draft_model=draft)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == text_of(oracle, cold.tokens)
    assert scrape(http)("requests_total", **label) == before + 1


def test_weights_of_a_draft_come_and_go_with_its_model(http: httpx.Client, folder: Path) -> None:
    both = {"model": "drafted", "kind": "weights"}
    assert ask(http, "drafted", ids(9, 3)).status_code == 200
    held = poll(http, lambda m: m("memory_bytes", **both) > 0)
    assert held("memory_bytes", **both) > 1.9 * weights(folder)
    assert http.delete("/admin/models/drafted").status_code == 200
    poll(http, lambda m: m("memory_bytes", **both) == 0)
