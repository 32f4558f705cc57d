"""Several base models in one server: loaded on demand, unloaded for room, failing alone."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.adapters import make_adapter
from tests.models import make
from tests.oracle import Oracle

from .process import PATIENCE, Server
from .several import BROKEN, HUGE, KEPT, KV, MAIN, OTHER, REMOTE, THIRD, Hub, settings
from .support import MOST_POLLS, Metrics, decisive, events, idle, ids, poll, scrape, text_of
from .test_disconnect import call, read_event

ROUTE = "/v1/completions"
NEW = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of models with weights of their own, all of one size but for the huge one."""
    top = tmp_path_factory.mktemp("models")
    families = {MAIN: "qwen3", OTHER: "llama", THIRD: "qwen3", KEPT: "llama"}
    made = {
        name: make(family, top / name, seed=seed)
        for seed, (name, family) in enumerate(families.items(), start=11)
    }
    made[BROKEN] = shutil.copytree(made[OTHER], top / BROKEN)
    (made[BROKEN] / "model.safetensors").write_bytes(b"\x08" + b"\0" * 20)
    made[HUGE] = make("qwen3", top / HUGE, hidden_size=256, intermediate_size=512)
    make_adapter(made[OTHER], top / "style", seed=4)
    made["style"] = top / "style"
    return made


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


first: list[Metrics] = []  # as they were before any request


@pytest.fixture(scope="module")
def server(
    models: dict[str, Path], hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    with Server("--config", str(settings(models, folder)), env=env) as server:
        first.append(Metrics(httpx.get(f"{server.ready().url}/metrics").text))
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def oracles(models: dict[str, Path]) -> Any:
    @cache
    def of(name: str, adapter: str | None = None) -> Oracle:
        return Oracle(models[name], None if adapter is None else models[adapter])

    return of


def ask(http: httpx.Client, model: str, prompt: list[int], **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0}
    return http.post(ROUTE, json=body | more)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def loaded(http: httpx.Client) -> set[str]:
    listed = http.get("/v1/models").json()["data"]
    return {m["id"] for m in listed if m["loaded"] and m["parent"] is None}


def unload(http: httpx.Client, *names: str) -> None:
    for name in names:
        assert http.delete(f"/admin/models/{name}").status_code == 200


def test_all_models_are_listed_and_only_those_that_stay_are_loaded_at_start(
    http: httpx.Client, models: dict[str, Path]
) -> None:
    unload(http, OTHER, THIRD)
    listed = {m["id"]: m for m in http.get("/v1/models").json()["data"]}
    names = [MAIN, OTHER, f"{OTHER}:style", THIRD, KEPT, BROKEN, HUGE, REMOTE]
    assert list(listed) == names
    assert loaded(http) == {MAIN, KEPT}
    assert listed[KEPT]["attention"] == "lent"
    assert listed[OTHER]["root"] == str(models[OTHER])
    assert listed[OTHER]["max_model_len"] is None
    assert listed[f"{OTHER}:style"]["parent"] == OTHER
    assert http.get(f"/v1/models/{OTHER}").json() == listed[OTHER]


def test_a_model_is_loaded_by_the_first_request_for_it(http: httpx.Client, oracles: Any) -> None:
    unload(http, OTHER, THIRD)
    before = scrape(http)
    prompt, cold = decisive(oracles(THIRD), 60, NEW, 400)
    assert text(ask(http, THIRD, prompt)) == text_of(oracles(THIRD), cold.tokens)
    assert loaded(http) == {MAIN, KEPT, THIRD}
    assert http.get(f"/v1/models/{THIRD}").json()["max_model_len"] == 512
    after = scrape(http)
    risen = [
        m("model_loads_total", model=THIRD, result="loaded") - b
        for m, b in ((after, before("model_loads_total", model=THIRD, result="loaded")),)
    ]
    assert risen == [1]
    assert after("model_loaded", model=THIRD) == 1
    assert after("memory_bytes", model=THIRD, kind="weights") > 0


def test_models_at_work_together_reply_as_each_alone_would(
    http: httpx.Client, server: Server, oracles: Any
) -> None:
    unload(http, OTHER, THIRD)
    jobs = [
        (name, *decisive(oracles(name), 20 + 40 * i, 24, 500 + i))
        for i in range(3)
        for name in (MAIN, OTHER, KEPT)
    ]

    def run(job: Any) -> str:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as own:
            return text(ask(own, job[0], job[1], max_tokens=24))

    with ThreadPoolExecutor(len(jobs)) as threads:
        texts = list(threads.map(run, jobs))
    assert texts == [text_of(oracles(name), cold.tokens) for name, _, cold in jobs]


def test_the_same_tokens_are_cached_for_each_model_by_itself(http: httpx.Client) -> None:
    prompt = ids(80, 410)
    for model in (MAIN, KEPT, MAIN, KEPT):
        usage = ask(http, model, prompt).json()["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached in (0, 79)
    assert cached == 79


def test_adapters_of_a_model_come_with_it(http: httpx.Client, oracles: Any) -> None:
    unload(http, OTHER)
    adapted = oracles(OTHER, "style")
    prompt, cold = decisive(adapted, 60, NEW, 420)
    for model in (f"{OTHER}:style", "style"):
        assert text(ask(http, model, prompt)) == text_of(adapted, cold.tokens)
    by_field = ask(http, OTHER, prompt, adapter="style")
    assert text(by_field) == text_of(adapted, cold.tokens)
    assert error(ask(http, MAIN, prompt, adapter="style"), 404)["code"] == "model_not_found"
    assert error(ask(http, f"{MAIN}:style", prompt), 404)["code"] == "model_not_found"
    listed = http.get("/admin/adapters").json()["adapters"]
    assert [(a["model"], a["name"]) for a in listed] == [(OTHER, "style")]


def test_chats_wait_for_the_template_of_their_model(http: httpx.Client, client: OpenAI) -> None:
    unload(http, OTHER)
    messages = [{"role": "user", "content": "bada"}]
    reply = client.chat.completions.create(model=OTHER, messages=messages, max_tokens=4)
    assert reply.usage.completion_tokens > 0
    assert OTHER in loaded(http)


def test_what_was_used_least_recently_makes_room_and_its_memory_comes_back(
    http: httpx.Client,
) -> None:
    unload(http, OTHER, THIRD)
    idle_before = poll(http, idle)
    ask(http, OTHER, ids(300, 430))
    held = poll(http, lambda m: m("kv_cache_bytes", model=OTHER, state="cached") > 0)
    assert held("memory_bytes", model=OTHER, kind="weights") > 0
    ask(http, THIRD, ids(30, 431))
    assert loaded(http) == {MAIN, KEPT, THIRD}
    after = poll(http, lambda m: m("model_loaded", model=OTHER) == 0)
    assert after("memory_bytes", model=OTHER, kind="weights") == 0
    assert after("kv_cache_bytes", model=OTHER, state="cached") == 0
    unloads = after("model_unloads_total", model=OTHER)
    assert unloads == idle_before("model_unloads_total", model=OTHER) + 1
    sums = [m("kv_cache_bytes") for m in (idle_before, held, after)]
    assert sums == [KV] * 3
    unload(http, THIRD)
    last = poll(http, lambda m: m("model_loaded", model=THIRD) == 0)
    weights_left = last("memory_bytes", kind="weights")
    cached = last("kv_cache_bytes", state="cached")
    assert abs(last("memory_bytes", kind="active") - weights_left - cached) < 1 << 20


def test_what_can_never_fit_is_refused_and_drives_nobody_out(http: httpx.Client) -> None:
    ask(http, OTHER, ids(30, 440))
    answer = ask(http, HUGE, ids(30, 441))
    found = error(answer, 503)
    assert found["code"] == "model_failed"
    assert "its weights take" in found["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert OTHER in loaded(http)


def test_a_model_that_cannot_be_loaded_says_why_and_the_rest_goes_on(
    http: httpx.Client, models: dict[str, Path]
) -> None:
    before = scrape(http)
    body = {"model": MAIN, "prompt": [7, 8, 9], "max_tokens": 400, "ignore_eos": True}
    with http.stream("POST", ROUTE, json=body | {"stream": True}) as response:
        data = events(response.iter_lines())
        seen = [next(data)]
        answers = [ask(http, BROKEN, ids(9, 450), stream=stream) for stream in (False, True)]
        seen += data
    assert seen[-1] == "[DONE]"
    assert json.loads(seen[-2])["choices"][0]["finish_reason"] == "length"
    for answer in answers:
        found = error(answer, 503)
        assert (found["type"], found["code"]) == ("server_error", "model_failed")
        assert f"cannot load {models[BROKEN]}" in found["message"]
        assert int(answer.headers["retry-after"]) >= 1
    after = scrape(http)
    for name, labels in (
        ("admission_rejections_total", {"reason": "model_failed"}),
        ("model_loads_total", {"result": "failed"}),
    ):
        risen = after(name, model=BROKEN, **labels) - before(name, model=BROKEN, **labels)
        assert risen == (2 if name.startswith("admission") else 1)
    state = {m["name"]: m for m in http.get("/admin/models").json()["models"]}[BROKEN]
    assert state["state"] == "unloaded"
    assert "damaged" in state["error"]
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 200


def test_others_are_served_while_a_load_hangs_and_who_waits_may_leave(
    http: httpx.Client, hub: Hub, oracles: Any
) -> None:
    unload(http, OTHER)
    before = poll(http, idle)
    with call(http, {"model": REMOTE, "prompt": ids(9, 460)}):
        hub.wait_for_call()
        waiting = poll(http, lambda m: m("requests_waiting", model=REMOTE) == 1)
        assert waiting("client_disconnects_total") == before("client_disconnects_total")
        state = {m["name"]: m for m in http.get("/admin/models").json()["models"]}[REMOTE]
        assert (state["state"], state["requests"]) == ("loading", 1)
        prompt, cold = decisive(oracles(MAIN), 40, NEW, 461)
        assert text(ask(http, MAIN, prompt)) == text_of(oracles(MAIN), cold.tokens)
        with call(http, {"model": MAIN, "prompt": [7, 8], "stream": True}) as streaming:
            read_event(streaming)
    gone = before("client_disconnects_total", model=REMOTE) + 1
    poll(http, lambda m: m("client_disconnects_total", model=REMOTE) == gone)
    poll(http, lambda m: m("requests_waiting", model=REMOTE) == 0)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(http, REMOTE, ids(9, 462))))
    asking.start()
    poll(http, lambda m: m("requests_waiting", model=REMOTE) == 1)
    hub.hang_up()
    asking.join(PATIENCE)
    assert error(answers[0], 503)["code"] == "model_failed"


def test_an_operator_loads_and_unloads(http: httpx.Client) -> None:
    unload(http, OTHER, THIRD)
    answer = http.post("/admin/models", json={"name": OTHER})
    assert answer.status_code == 200
    states = {m["name"]: m for m in answer.json()["models"]}
    assert (states[OTHER]["state"], states[OTHER]["keep_loaded"]) == ("loaded", False)
    assert states[OTHER]["weights"] > 0
    assert states[KEPT]["keep_loaded"] and states[MAIN]["keep_loaded"]
    unload(http, OTHER)
    assert loaded(http) == {MAIN, KEPT}
    for name in (MAIN, KEPT):
        assert http.delete(f"/admin/models/{name}").status_code == 409
    assert error(http.delete("/admin/models/none"), 404)["code"] == "model_not_found"
    assert error(http.post("/admin/models", json={"name": "none"}), 404)["param"] == "name"
    assert error(http.post("/admin/models", json={"name": BROKEN}), 503)["code"] == "model_failed"


def test_unloading_waits_for_the_requests_that_the_model_has(http: httpx.Client) -> None:
    http.post("/admin/models", json={"name": OTHER})
    body = {"model": OTHER, "prompt": ids(20, 470), "max_tokens": 300, "stream": True}
    with http.stream("POST", ROUTE, json=body | {"ignore_eos": True}) as response:
        data = events(response.iter_lines())
        next(data)
        answers: list[httpx.Response] = []
        leaving = threading.Thread(
            target=lambda: answers.append(http.delete(f"/admin/models/{OTHER}"))
        )
        leaving.start()
        for _ in range(MOST_POLLS):
            states = {m["name"]: m for m in http.get("/admin/models").json()["models"]}
            if states[OTHER]["state"] == "unloading":
                break
        rest = list(data)
    leaving.join(PATIENCE)
    assert rest[-1] == "[DONE]"
    assert [a.status_code for a in answers] == [200]
    assert OTHER not in loaded(http)


def test_adapters_are_administered_for_each_model(
    server: Server, http: httpx.Client, models: dict[str, Path]
) -> None:
    no_folder = http.post("/admin/adapters", json={"name": "x", "model": OTHER})
    assert "--adapter-dir" in error(no_folder, 400)["message"]
    unknown = http.post("/admin/adapters", json={"name": "x", "model": "none"})
    assert error(unknown, 404)["param"] == "model"
    pinned = http.patch(f"/admin/adapters/{OTHER}:style", json={"pinned": True})
    (state,) = pinned.json()["adapters"]
    assert (state["model"], state["name"], state["pinned"]) == (OTHER, "style", True)
    unload(http, OTHER)
    http.post("/admin/models", json={"name": OTHER})
    (state,) = http.get("/admin/adapters").json()["adapters"]
    assert state["pinned"], "it is forgotten with the model"
    http.patch("/admin/adapters/style", json={"pinned": False})


def test_unknown_models_are_not_found(http: httpx.Client) -> None:
    for name in ("none", f"{OTHER}:none", "main:style:x"):
        found = error(ask(http, name, ids(5, 480)), 404)
        assert found["code"] == "model_not_found"
        assert http.get(f"/v1/models/{name}").status_code == 404


@pytest.mark.usefixtures("server")
def test_every_series_of_every_model_is_there_from_the_start() -> None:
    (metrics,) = first
    for name in (MAIN, OTHER, THIRD, KEPT, BROKEN, HUGE, REMOTE):
        for counter in ("prompt_tokens", "generation_tokens", "requests", "model_unloads"):
            assert metrics(f"{counter}_total", model=name) == 0
        assert metrics("model_loaded", model=name) == (name in (MAIN, KEPT))
        assert metrics("model_loads_total", model=name, result="failed") == 0
        assert metrics("engine_healthy", model=name) == 1
    assert metrics("requests_total", model=OTHER, adapter="style") == 0
    assert metrics("draft_tokens_total", model=THIRD, draft="ngram") == 0
    names = {s.labels["model"] for s in metrics.samples if "model" in s.labels}
    assert names == {MAIN, OTHER, THIRD, KEPT, BROKEN, HUGE, REMOTE}


def test_what_stays_loaded_may_fail_without_the_others(
    models: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "commons.toml"
    file.write_text(
        f'model = "{models[MAIN]}"\n'
        f'[models.{BROKEN}]\nmodel = "{models[BROKEN]}"\nkeep_loaded = true\n'
    )
    with Server("--config", str(file)) as started:
        url = started.ready().url
        assert any(f"{BROKEN}: cannot be loaded" in line for line in started.lines)
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            assert http.get("/ready").status_code == 200
            assert text(ask(http, MAIN, ids(5, 490))) is not None
            assert error(ask(http, BROKEN, ids(5, 491)), 503)["code"] == "model_failed"


@pytest.mark.parametrize("option", ["500KB", "9000"])
def test_a_memory_that_the_main_model_does_not_fit_ends_the_start_in_one_line(
    models: dict[str, Path], option: str
) -> None:
    with Server("--model", str(models[MAIN]), "--memory", option) as server:
        assert server.wait() == 1
        assert "--memory is too small" in server.lines[-1]
        assert not any("Traceback" in line for line in server.lines)
