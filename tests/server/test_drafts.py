"""Drafts over HTTP: chosen by the server, by a request, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from openai import NotFoundError, OpenAI

from tests.models import model_dir
from tests.oracle import Oracle

from .process import PATIENCE, Server, commons
from .support import MODEL, Metrics, decisive, ids, scrape, text_of

NEW = 24

first: list[Metrics] = []  # as they were before any request


@pytest.fixture(scope="module")
def drafting(tiny: str) -> Iterator[Server]:
    """A model that drafts for itself."""
    with Server("--model", tiny, "--draft-model", tiny, "--num-draft-tokens", "3") as server:
        first.append(Metrics(httpx.get(f"{server.ready().url}/metrics").text))
        yield server


@pytest.fixture
def http(drafting: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=drafting.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def client(drafting: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{drafting.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "label"),
    [({}, MODEL), ({"draft_model": MODEL}, MODEL), ({"draft_model": "ngram"}, "ngram")],
)
def test_a_reply_with_drafts_is_that_of_a_cold_run(client, http, asked, label, oracle: Oracle):
    prompt, reply = decisive(oracle, 40, NEW, 3)
    before = scrape(http)
    done = client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=NEW,
        temperature=0,
        extra_body=asked | {"ignore_eos": True},
    )
    assert done.choices[0].text == text_of(oracle, reply.tokens)
    assert done.usage is not None
    assert done.usage.completion_tokens == len(reply.tokens)
    after = scrape(http)

    def more(name: str) -> float:
        return after(name, draft=label) - before(name, draft=label)

    assert more("generation_tokens_total") == len(reply.tokens)
    assert more("draft_accepted_tokens_total") <= more("draft_tokens_total")


def test_no_draft_where_none_is_wanted(client, http):
    before = scrape(http)
    client.completions.create(
        model=MODEL,
        prompt=ids(30, 4),
        max_tokens=NEW,
        temperature=0,
        extra_body={"draft_model": None, "ignore_eos": True},
    )
    after = scrape(http)
    assert after("draft_tokens_total") == before("draft_tokens_total")
    assert (
        after("generation_tokens_total", draft="")
        == before("generation_tokens_total", draft="") + NEW
    )


def test_an_unknown_draft_is_named(client):
    with pytest.raises(NotFoundError) as raised:
        client.completions.create(
            model=MODEL, prompt=[5], max_tokens=1, extra_body={"draft_model": "other"}
        )
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "draft_model"
    assert "ngram" in str(raised.value)


def test_models_tell_the_drafts(http):
    (model,) = http.get("/v1/models").json()["data"]
    assert model["drafts"] == {"models": [MODEL, "ngram"], "off": None}


@pytest.mark.usefixtures("drafting")
def test_series_of_drafts_start_at_zero():
    (metrics,) = first
    for draft in ("", MODEL, "ngram"):
        assert metrics("draft_tokens_total", draft=draft) == 0


def test_drafts_are_off_where_tokens_cannot_be_taken_back():
    with (
        Server("--model", str(model_dir("gemma3")), "--draft-model", "ngram") as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as http,
    ):
        (model,) = http.get("/v1/models").json()["data"]
        assert model["drafts"]["models"] == []
        assert "sliding window" in model["drafts"]["off"]
        request = {"model": model["id"], "prompt": [5, 6], "max_tokens": 2}
        assert http.post("/v1/completions", json=request).status_code == 200
        refused = http.post("/v1/completions", json=request | {"draft_model": "ngram"})
        assert refused.status_code == 404
        assert "sliding window" in refused.json()["error"]["message"]


def test_a_draft_that_cannot_be_loaded_ends_the_start(tiny: str, tmp_path):
    ended = commons("serve", "--model", tiny, "--draft-model", str(tmp_path), "--port", "0")
    assert ended.returncode == 1
    assert "config.json" in ended.stderr
