"""Public prompts of a model that is loaded: what requests of every domain then find."""

from __future__ import annotations

import json
import shutil
from array import array
from typing import Any

import pytest

from cache.loan import Borrower
from engine import embedded
from engine.loader import LoadError
from engine.model_memory import ModelMemory
from engine.pieces import finish
from engine.variant import BASE, Variant
from scheduler.info import ModelConfig, PublicPrompt, ServiceConfig
from scheduler.live import AdapterFiles, Live, going_live
from scheduler.stats import NO_STATS
from scheduler.tenant import Limits, Tenant
from tests.adapters import make_adapter
from tests.models import model_dir

from .fake_models import World

KV = 64 << 20  # bytes
SYSTEM = {"role": "system", "content": "You are a careful reviewer of long programs. " * 8}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def load(
    path: str, *prompts: PublicPrompt, adapters: dict[str, AdapterFiles] | None = None, **options
) -> Live:
    memory = ModelMemory(None, KV, several=False)
    config = ModelConfig("m", path, keep_loaded=True, draft_model=options.pop("draft", None))
    service = ServiceConfig(model=path, served_model_name="m", public=prompts, **options)
    work = going_live(config, adapters or {}, service, memory, NO_STATS, lambda _: None)
    return finish(work, memory.settle)


def found(live: Live, tokens, domain: str, variant: Variant = BASE) -> int:
    return live.engine.lookup(array("i", tokens), variant, Borrower("t", domain)).length


def asked(text: str, *before: dict[str, Any]) -> list[dict[str, Any]]:
    return [*before, {"role": "user", "content": text}]


@pytest.mark.parametrize("family", ["qwen3", "qwen3_next"])
def test_conversations_of_every_domain_begin_with_a_public_system_prompt(family):
    live = load(str(model_dir(family)), PublicPrompt("m", messages=(SYSTEM,)))
    tokenizer = live.facts.tokenizer
    length = len(tokenizer.beginning(messages=(SYSTEM,)))
    assert length > 100
    for domain in ("one", "two"):
        for text in ("Is this right?", "Zzz", "  "):
            prompt = tokenizer.chat(asked(text, SYSTEM))
            assert found(live, prompt.tokens, domain) == length
            # Behind it may come the end of the turn, where layers with states keep them, too.
            assert prompt.boundaries[:1] in ((), (length,))
    assert live.engine.used >= length * live.engine.token_bytes
    live.engine.close()


def test_states_are_kept_where_the_system_prompt_of_a_public_conversation_ends():
    said = (
        SYSTEM,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Well met."},
    )
    live = load(str(model_dir("qwen3_next")), PublicPrompt("m", messages=said))
    tokenizer = live.facts.tokenizer
    whole, system = (len(tokenizer.beginning(messages=m)) for m in (said, said[:1]))
    assert found(live, tokenizer.chat(asked("Go on", *said)).tokens, "any") == whole
    assert found(live, tokenizer.chat(asked("Else", SYSTEM)).tokens, "any") == system < whole
    live.engine.close()


def test_tools_texts_and_defaults_are_what_requests_render_to():
    tools = (TOOL,)
    live = load(
        str(embedded.path()),
        PublicPrompt("m", messages=(SYSTEM,), tools=tools),
        PublicPrompt("m", text="def main() -> None:\n    parser = argparse.ArgumentParser()\n"),
        PublicPrompt("other", text="of another model"),
        draft="ngram",
    )
    tokenizer = live.facts.tokenizer
    default = Variant(draft=live.facts.info.drafts.names[0])
    prompt = tokenizer.chat(asked("Hello", SYSTEM), [TOOL]).tokens
    assert found(live, prompt, "any", default) == len(tokenizer.beginning(None, (SYSTEM,), tools))
    assert found(live, prompt, "any") > 0, "prompt lookup has no KV of its own"
    text = "def main() -> None:\n    parser = argparse.ArgumentParser()\n    parser.parse_args()"
    whole = tokenizer.encode(text, special=True)
    assert found(live, whole, "any", default) >= 10
    other = tokenizer.encode("of another model, at last", special=True)
    assert found(live, other, "any", default) == 0
    live.engine.close()


def test_an_adapters_prompt_is_its_own(tmp_path):
    path = model_dir("qwen3")
    files = {"a": AdapterFiles(str(make_adapter(path, tmp_path / "a", seed=1, rank=4)))}
    prompt = PublicPrompt("m", adapter="a", text="one two three four five six seven")
    live = load(str(path), prompt, adapters=files)
    tokens = live.facts.tokenizer.encode(f"{prompt.text} eight", special=True)
    assert found(live, tokens, "any", Variant("a")) > 0
    assert found(live, tokens, "any") == 0
    live.engine.close()


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        (PublicPrompt("m", text="word " * 9000), {}, "the context is"),
        (PublicPrompt("m", text=""), {}, "of 0 tokens cannot be lent"),
        (PublicPrompt("m", text="some words"), {"prefix_cache": False}, "switched off"),
    ],
)
def test_what_cannot_be_published_fails_the_load_and_says_why(prompt, options, reason):
    with pytest.raises(LoadError, match=reason) as caught:
        load(str(model_dir("qwen3")), prompt, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system') }}", "cannot be rendered.*no system"),
        (None, "no chat tem"),
    ],
)
def test_a_template_that_refuses_fails_the_load(tmp_path, template, reason):
    path = tmp_path / "model"
    shutil.copytree(model_dir("qwen3"), path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(LoadError, match=reason):
        load(str(path), PublicPrompt("m", messages=(SYSTEM,)))


def test_the_pool_divides_the_memory_between_tenants():
    pool = World(("main",), budget=1000).pool
    pool.configure([Tenant("a", weight=2.0, limits=Limits(cache_share=0.25)), Tenant("b")])
    shares = pool.memory.kv.shares
    shares.charge(("a",), 0, 300)
    assert not shares.admit(("a",), 1)
    assert shares.admit(("b",), 1 << 40)
    pool.configure([Tenant("a", limits=Limits(cache_share=0.5))])
    assert shares.admit(("a",), 1)
