"""Adapters as models of their own, loaded at start and while others are served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import NotFoundError, OpenAI

from tests.adapters import make_adapter
from tests.models import model_dir
from tests.oracle import Oracle

from .process import PATIENCE, Server, commons
from .support import MODEL, MOST_POLLS, decisive, ids, poll, scrape, text_of

NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters a, b and c, and beside it one that must stay out of reach."""
    top = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("inside/a", "inside/b", "inside/c", "outside")):
        make_adapter(model_dir("qwen3"), top / name, seed=seed, rank=4 + seed)
    (top / "inside" / "bad").mkdir()
    return top / "inside"


@pytest.fixture(scope="module")
def adapted(folder: Path, tiny: str) -> Iterator[Server]:
    options = ("--adapter", f"a={folder / 'a'}", "--adapter", f"b={folder / 'b'}")
    with Server("--model", tiny, "--adapter-dir", str(folder), *options) as server:
        yield server.ready()


@pytest.fixture
def http(adapted: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=adapted.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def client(adapted: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{adapted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, model: str, prompt: list[int], **more):
    return client.completions.create(
        model=model, prompt=prompt, max_tokens=NEW, temperature=0, **more
    )


def same_text(client: OpenAI, folder: Path, model: str, adapter: str | None, seed: int) -> None:
    """The reply of ``model`` is mlx-lm's with ``adapter`` loaded."""
    oracle = Oracle(model_dir("qwen3"), folder / adapter if adapter else None)
    prompt, cold = decisive(oracle, 60, NEW, seed)
    assert ask(client, model, prompt).choices[0].text == text_of(oracle, cold.tokens)


def test_each_adapter_is_a_model_with_its_own_replies(client: OpenAI, folder: Path) -> None:
    prompt = ids(60, 1)
    for model, adapter in ((MODEL, None), (f"{MODEL}:a", "a"), ("b", "b"), ("a", "a")):
        same_text(client, folder, model, adapter, seed=1)
    texts = {ask(client, m, prompt).choices[0].text for m in (MODEL, "a", "b")}
    assert len(texts) == 3, "an adapter without effect shows nothing"


def test_the_same_prompt_is_cached_for_each_adapter_by_itself(client: OpenAI) -> None:
    prompt = ids(80, 2)
    for model in (MODEL, "a", "b"):
        assert ask(client, model, prompt).usage.prompt_tokens_details.cached_tokens == 0
    for model in (MODEL, f"{MODEL}:a", "b"):
        assert ask(client, model, prompt).usage.prompt_tokens_details.cached_tokens == 79


def test_the_adapter_field_names_one_of_the_model(client: OpenAI) -> None:
    prompt = ids(50, 3)
    by_field = ask(client, MODEL, prompt, extra_body={"adapter": "a"}).choices[0].text
    assert by_field == ask(client, "a", prompt).choices[0].text
    for model, adapter in ((MODEL, "zzz"), ("a", "b")):
        with pytest.raises(NotFoundError) as error:
            ask(client, model, prompt, extra_body={"adapter": adapter})
        assert error.value.code == "model_not_found"


def test_models_are_listed_with_their_parent(client: OpenAI, folder: Path) -> None:
    listed = {m.id: m for m in client.models.list()}
    assert {MODEL, f"{MODEL}:a", f"{MODEL}:b"} <= set(listed)
    one = client.models.retrieve(f"{MODEL}:a")
    assert one.parent == MODEL
    assert one.root == str(folder / "a")
    assert one.attention == "lent"
    with pytest.raises(NotFoundError):
        client.models.retrieve(f"{MODEL}:zzz")


def test_metrics_tell_adapters_apart(http: httpx.Client, client: OpenAI) -> None:
    before = scrape(http)
    ask(client, "b", ids(30, 4))
    after = scrape(http)

    def grown(adapter: str) -> float:
        return after("prompt_tokens_total", adapter=adapter) - before(
            "prompt_tokens_total", adapter=adapter
        )

    assert (grown("b"), grown("a"), grown("")) == (30, 0, 0)


def test_an_adapter_comes_and_goes_while_others_are_served(
    http: httpx.Client, client: OpenAI, folder: Path
) -> None:
    with pytest.raises(NotFoundError):
        ask(client, "c", ids(20, 5))
    loaded = http.post("/admin/adapters", json={"name": "c", "pinned": True})
    assert loaded.status_code == 201
    state = {a["name"]: a for a in loaded.json()["adapters"]}["c"]
    assert state["pinned"] and state["resident"] and state["rows"] == 0
    assert scrape(http)("requests_total", adapter="c") == 0
    same_text(client, folder, f"{MODEL}:c", "c", seed=6)
    assert http.post("/admin/adapters", json={"name": "c"}).status_code == 409
    changed = http.patch("/admin/adapters/c", json={"pinned": False})
    assert not {a["name"]: a for a in changed.json()["adapters"]}["c"]["pinned"]
    assert http.delete("/admin/adapters/c").status_code == 200
    with pytest.raises(NotFoundError):
        ask(client, "c", ids(20, 5))
    assert http.delete("/admin/adapters/c").status_code == 404


def test_unloading_waits_for_the_requests_that_it_has(http: httpx.Client, client: OpenAI) -> None:
    assert http.post("/admin/adapters", json={"name": "c"}).status_code == 201
    body = {"model": "c", "prompt": ids(20, 7), "max_tokens": 300, "stream": True}
    with http.stream("POST", "/v1/completions", json=body | {"ignore_eos": True}) as response:
        lines = response.iter_lines()
        next(lines)
        answers = []
        unload = threading.Thread(target=lambda: answers.append(http.delete("/admin/adapters/c")))
        unload.start()
        # From then on nobody else is let in, and the one that runs goes on to its end.
        for _ in range(MOST_POLLS):
            if f"{MODEL}:c" not in {m.id for m in client.models.list()}:
                break
        with pytest.raises(NotFoundError):
            ask(client, "c", ids(20, 8))
        rest = [line for line in lines if line]
    unload.join(PATIENCE)
    assert rest[-1] == "data: [DONE]"
    assert [a.status_code for a in answers] == [200]
    poll(http, lambda m: m("requests_running") == 0)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "d", "path": "../outside"}, "path"),
        ({"name": "d", "path": "/etc"}, "path"),
        ({"name": "d", "path": "."}, "path"),
        ({"name": "d", "path": "a\0b"}, "path"),
        ({"name": "../c", "path": "c"}, "name"),
        ({"name": "", "path": "c"}, "name"),
        ({"name": "d", "path": "bad"}, "path"),
        ({"name": "d", "path": "nowhere"}, "path"),
        ({"name": "d", "colour": "red"}, None),
        ({"path": "c"}, "name"),
    ],
)
def test_what_may_not_be_loaded_is_refused(http: httpx.Client, body, param) -> None:
    answer = http.post("/admin/adapters", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert http.get("/ready").status_code == 200


def test_bad_adapters_end_the_start_in_one_line(tiny: str, folder: Path) -> None:
    for option in (f"x={folder / 'bad'}", "x", f"a/b={folder / 'a'}", f"{MODEL}={folder / 'a'}"):
        ended = commons("serve", "--model", tiny, "--port", "0", "--adapter", option)
        assert ended.returncode in (1, 2), option
        assert "Traceback" not in ended.stderr
