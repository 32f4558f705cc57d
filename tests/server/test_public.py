"""Trust domains of a real server: what is lent to whom, and public prompts lent to all."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from .access import write_keys
from .limited import OPERATOR, as_tenant
from .process import PATIENCE, Server
from .support import scrape

PUBLIC = {"role": "system", "content": "You are the assistant of a library. " * 12}
TENANTS = ("team", "others", "visitors")  # the last one keeps to itself


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("public") / "commons.toml"
    config.write_text(
        "[tenants.team]\n[tenants.others]\n[tenants.visitors]\ntrust_domain = 'apart'\n"
        f"[[public]]\nmessages = [{{role = 'system', content = {json.dumps(PUBLIC['content'])}}}]\n"
    )
    write_keys(config, *TENANTS, "admin")
    with Server("--config", str(config)) as server:
        yield server.ready()


@pytest.fixture
def http(served: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE, headers=OPERATOR) as client:
        yield client


def ask(http: httpx.Client, tenant: str, messages: list[dict[str, str]], **more: str) -> int:
    """The tokens that a reply to ``messages`` found in the cache."""
    body = {"model": "commons-tiny", "messages": messages, "max_tokens": 3} | more
    answer = http.post("/v1/chat/completions", json=body, headers=as_tenant(tenant))
    answer.raise_for_status()
    found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_public_prompt_is_lent_to_every_domain_from_its_first_request(http: httpx.Client) -> None:
    found = {
        tenant: ask(http, tenant, [PUBLIC, user(f"first words of {tenant}")]) for tenant in TENANTS
    }
    assert min(found.values()) > 50
    metrics = scrape(http)
    for tenant in TENANTS:
        lent = {
            lender: metrics("prefix_cache_lent_tokens_total", lender=lender, borrower=tenant)
            for lender in ("public", *TENANTS)
        }
        assert lent["public"] > 50
        assert sum(lent.values()) == found[tenant]


def test_a_salt_does_not_hide_what_is_public(http: httpx.Client) -> None:
    assert ask(http, "team", [PUBLIC, user("salted words")], cache_salt="pepper") > 50


def test_prefixes_are_lent_within_a_domain_and_not_across(http: httpx.Client) -> None:
    own = {"role": "system", "content": "Nobody else needs to know this at all. " * 10}
    assert ask(http, "team", [own, user("one")]) < 10
    assert ask(http, "others", [own, user("two")]) > 50
    assert ask(http, "visitors", [own, user("three")]) < 10
    assert ask(http, "visitors", [own, user("four")]) > 50
    assert ask(http, "team", [own, user("five")], cache_salt="pepper") < 10
    metrics = scrape(http)
    assert metrics("prefix_cache_lent_tokens_total", lender="team", borrower="others") > 50
    assert metrics("prefix_cache_lent_tokens_total", lender="team", borrower="visitors") == 0
