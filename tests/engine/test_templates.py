"""engine/templates.py: what templates may do, and how much of it."""

from __future__ import annotations

import copy
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from engine import templates
from engine.templates import ChatTemplate, PromptError
from tests.models import model_dir

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


@functools.cache
def loaded() -> TokenizerWrapper:
    return load_tokenizer(model_dir("qwen3"))


def template(source: str) -> ChatTemplate:
    wrapper = copy.copy(loaded())
    wrapper._tokenizer = copy.copy(wrapper._tokenizer)
    wrapper._tokenizer.chat_template = source
    return ChatTemplate(wrapper)


def rendered(source: str, messages: list[dict[str, Any]] = HELLO, **options: Any) -> str:
    return template(source).render(messages, None, options)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content | tojson }}", '"hello"'),
        ("{{ {'a': '<é>'} | tojson(indent=1) }}", '{\n "a": "<é>"\n}'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}", "2"),
        (
            "{{ eos_token is defined }}{{ add_generation_prompt }}{{ tools is none }}",
            "TrueTrueTrue",
        ),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for m in messages recursive %}{{ loop.index }}{% endfor %}", "1"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ 'ab' * 2 }}{{ 2 ** 3 }}", "[1]abab8"),
    ],
)
def test_templates_get_what_they_know_from_transformers(source: str, text: str) -> None:
    assert rendered(source) == text


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3"])
def test_as_transformers_render_it(name: str) -> None:
    wrapper = load_tokenizer(model_dir(name))
    messages = [{"role": "system", "content": "s"}, *HELLO, {"role": "assistant", "content": "so "}]
    for said, more in (
        (messages[:2], {"add_generation_prompt": True}),
        (messages, {"continue_final_message": True}),
    ):
        expected = wrapper._tokenizer.apply_chat_template(said, tokenize=False, **more)
        assert ChatTemplate(wrapper).render(said, None, None) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception('no') }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ 7 ** 99999 }}",
        "{{ messages * 10 ** 9 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ lipsum(5) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% if %}",
        "{{ messages[0].content.nothing.at_all }}",
    ],
)
def test_what_a_template_may_not_do_is_refused(source: str) -> None:
    with pytest.raises(PromptError):
        rendered(source)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP.replace("BODY", ""),
        LOOP.replace("BODY", "{% set x = 1 %}"),
        "{% macro f(n) %}" + LOOP.replace("BODY", "") + "{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) * 2 }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
    ],
)
def test_time_is_limited(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_SECONDS", 0.05)
    began = time.thread_time()
    with pytest.raises(PromptError, match="too long over"):
        rendered(source)
    assert time.thread_time() - began < 1.5


def test_length_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_TEXT", 1000)
    with pytest.raises(PromptError, match="too long a text"):
        rendered("{% for i in range(99999) %}hello{% endfor %}")
    assert len(rendered("{% for i in range(200) %}hello{% endfor %}")) == 1000


def test_limits_are_of_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_SECONDS", 0.05)
    slow = LOOP.replace("BODY", "") + "{{ 1 }}"
    chats = {source: template(source) for source in (slow, "{{ messages[0].content }}")}

    def run(source: str) -> str:
        try:
            return chats[source].render(HELLO, None, None)
        except PromptError:
            return "refused"

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(run, [*chats] * 3))
    assert found == ["refused", "hello"] * 3


@pytest.mark.parametrize(
    ("source", "end"),
    [
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "[hello][so it "),
        ("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}", "[hello][so it"),
    ],
)
def test_last_message_is_continued_where_it_ends(source: str, end: str) -> None:
    said = [*HELLO, {"role": "assistant", "content": "so it "}]
    assert rendered(source, said) == end
    assert rendered(source, said, continue_final_message=False) == end + "]"
    assert rendered(source, said, add_generation_prompt=True) == end + "]"


def test_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(PromptError, match="continued"):
        rendered("{{ messages[0].content }}", [*HELLO, {"role": "assistant", "content": "so"}])


def test_deep_arguments_are_refused() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(PromptError, match="deep"):
        rendered("{{ messages[0].x | tojson }}", [{"role": "user", "content": "", "x": deep}])


def test_thoughts_go_by_all_their_names() -> None:
    said = [{"role": "assistant", "content": "", "reasoning_content": "hm"}, *HELLO]
    assert rendered("{{ messages[0].thinking }}{{ messages[0].reasoning_content }}", said) == "hmhm"
