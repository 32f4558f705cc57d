"""Stored responses: bounds, age, tenants, and the routes that lead back to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from server import response_store
from server.dialect import encode
from server.response_input import read_items
from server.response_store import ResponseStore

from .access import A, B, bearer, grants
from .responses import ROUTE, checked
from .scripted import Scripted, wired

pytestmark = pytest.mark.anyio

ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)


@pytest.fixture
def service() -> Scripted:
    service = Scripted(grants())
    service.says = "ok"
    return service


@pytest.fixture
async def http(service: Scripted) -> AsyncIterator[httpx.AsyncClient]:
    async with wired(service.app, key=A) as client:
        yield client


async def made(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post(ROUTE, json={"model": "m", "input": "go"} | body)
    assert answer.status_code == 200, answer.text
    return checked(answer.json())


async def test_fetched_as_it_was_answered(http: httpx.AsyncClient) -> None:
    response = await made(http)
    assert (await http.get(f"{ROUTE}/{response['id']}")).json() == response
    last = (await http.post(ROUTE, json={"model": "m", "input": "go", "stream": True})).text
    name = last.split('"id":"resp_')[1].split('"')[0]
    assert (await http.get(f"{ROUTE}/resp_{name}")).json()["status"] == "completed"
    refused = await http.get(f"{ROUTE}/{response['id']}", params={"stream": "true"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")


async def test_deleted_once(http: httpx.AsyncClient) -> None:
    url = f"{ROUTE}/{(await made(http))['id']}"
    assert (await http.delete(url)).json()["deleted"] is True
    assert (await http.delete(url)).status_code == 404
    assert (await http.get(url)).status_code == 404


async def test_not_stored_on_request(http: httpx.AsyncClient) -> None:
    response = await made(http, store=False)
    answer = await http.get(f"{ROUTE}/{response['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")


async def test_other_tenants_have_no_part_in_it(http: httpx.AsyncClient) -> None:
    response = await made(http)
    url = f"{ROUTE}/{response['id']}"
    item = response["output"][0]["id"]
    for answer in [
        await http.get(url, headers=bearer(B)),
        await http.delete(url, headers=bearer(B)),
        await http.post(f"{url}/cancel", headers=bearer(B)),
        await http.get(f"{url}/input_items", headers=bearer(B)),
    ]:
        assert answer.status_code == 404
    more = {"model": "m", "input": "x", "previous_response_id": response["id"]}
    answer = await http.post(ROUTE, json=more, headers=bearer(B))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "previous_response_not_found"
    reference = {"model": "m", "input": [{"type": "item_reference", "id": item}]}
    assert (await http.post(ROUTE, json=reference, headers=bearer(B))).status_code == 400
    assert (await http.get(url)).status_code == 200


async def test_an_ended_response_cannot_be_cancelled(http: httpx.AsyncClient) -> None:
    url = f"{ROUTE}/{(await made(http))['id']}/cancel"
    assert (await http.post(url)).status_code == 400
    assert (await http.post(f"{ROUTE}/resp_0/cancel")).status_code == 404


async def test_input_items_in_pages(http: httpx.AsyncClient) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": "b"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        call,
        {"type": "function_call_output", "call_id": "c", "output": "d"},
        {"type": "custom_tool_call", "call_id": "e", "name": "g", "input": "h"},
        {"type": "custom_tool_call_output", "call_id": "e", "output": "i"},
        {"role": "assistant", "content": "j"},
        {"role": "user", "content": "k"},
    ]
    first = await made(http, input=items)
    second = await made(http, input="l", previous_response_id=first["id"])
    url = f"{ROUTE}/{second['id']}/input_items"
    whole = (await http.get(url, params={"order": "asc"})).json()
    for item in whole["data"]:
        ITEM.validate_python(item, strict=True)
    assert [i["type"] for i in whole["data"]][2:7] == [i["type"] for i in items[2:7]]
    assert len(whole["data"]) == len(items) + 2  # the first answer, and "l"
    assert whole["has_more"] is False
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 4}
    while True:
        page = (await http.get(url, params=params)).json()
        seen += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            break
        params["after"] = page["last_id"]
    assert seen == [item["id"] for item in whole["data"]][::-1]
    for name, value in [("limit", "0"), ("limit", "x"), ("order", "up"), ("after", "none")]:
        answer = await http.get(url, params={name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def body_of(text: str) -> bytes:
    output = [{"type": "message", "id": f"msg_{text[:8]}", "content": text}]
    return encode({"output": output})


def keep(store: ResponseStore, name: str, text: str = "x", tenant: str = "a") -> None:
    store.keep(tenant, name, body_of(text), read_items("q", lambda _: None), 1)


def test_bounded_by_count_bytes_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "MOST_RESPONSES", 3)
    monkeypatch.setattr(response_store, "MOST_BYTES", 3000)
    now = 0.0
    store = ResponseStore(lambda: now)
    for name in "12345":
        keep(store, name)
    keep(store, "other", tenant="b")
    assert [n for n in "12345" if store.find("a", n)] == ["3", "4", "5"]
    keep(store, "large", "y" * 1500)
    assert store.find("a", "large") is not None
    assert store.find("a", "4") is None
    keep(store, "too large", "z" * 3000)
    assert store.find("a", "too large") is None
    assert store.find("a", "large") is not None
    assert store.find("b", "other") is not None
    now = response_store.MOST_SECONDS + 1
    assert store.find("a", "large") is None


def test_what_it_takes_to_find_items_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "MOST_BYTES", 1 << 20)
    store = ResponseStore()
    items = read_items([{"role": "user", "content": ""}] * 3000, lambda _: None)
    store.keep("a", "1", body_of("x"), items, len(items))
    assert store.find("a", "1") is None  # its JSON is half of that


def test_items_are_found_as_long_as_their_response_is_stored() -> None:
    store = ResponseStore()
    keep(store, "1", "hello")
    found = store.recall("a")("msg_hello")
    assert found is not None and found["content"] == "hello"
    assert store.recall("b")("msg_hello") is None
    assert store.delete("a", "1")
    assert store.recall("a")("msg_hello") is None
