"""engine/tokenizer.py: templates and their options, boundaries, refusals, bytes of tokens."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from engine import embedded
from engine.tokenizer import Prompt, PromptError, Tokenizer, tool_arguments
from tests.models import model_dir

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@functools.cache
def full(system_boundary: bool = False) -> Tokenizer:
    """One with thoughts and tools."""
    return Tokenizer(load_tokenizer(embedded.path()), system_boundary=system_boundary)


@functools.cache
def plain() -> Tokenizer:
    """One with neither."""
    return Tokenizer(load_tokenizer(model_dir("qwen3")))


def changed(template: str) -> Tokenizer:
    """The plain one with another template."""
    wrapper = load_tokenizer(model_dir("qwen3"))
    wrapper._tokenizer.chat_template = template
    return Tokenizer(wrapper)


def said(*messages: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    raw = b"".join(bytes(tokenizer.token_bytes(t)) for t in prompt.tokens)
    return raw.decode()


def test_markers_are_found() -> None:
    assert full().think == ("<think>", "</think>")
    assert full().tool_call == ("<tool_call>", "</tool_call>")
    assert plain().think is None
    assert plain().tool_call is None
    assert full().has_chat_template
    assert plain().has_chat_template


def test_conversation_is_rendered_by_the_template() -> None:
    prompt = plain().chat(said(("system", "be brief"), ("user", "hi")))
    assert text(prompt, plain()) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.tokens[0] == 1  # the marker is one token
    assert not prompt.thinking


def test_last_assistant_message_is_left_open() -> None:
    prompt = plain().chat(said(("user", "hi"), ("assistant", "so it")))
    assert text(prompt, plain()).endswith("<|im_start|>assistant\nso it")


def test_template_options() -> None:
    quiet = full().chat(said(("user", "hi")))
    loud = full().chat(said(("user", "hi")), options={"enable_thinking": True})
    assert not quiet.thinking
    assert loud.thinking
    assert text(loud, full()).endswith("<think>\n")
    assert text(quiet, full()).endswith("</think>\n\n")


def test_tools_are_offered() -> None:
    prompt = full().chat(said(("user", "hi")), [TOOL])
    assert '"name": "look"' in text(prompt, full())
    assert "look" not in text(full().chat(said(("user", "hi")), []), full())


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        (said(("system", "You are brief."), ("user", "hi")), None),
        (said(("system", "You are brief."), ("user", "hi")), [TOOL]),
        (said(("user", "hi")), [TOOL]),
    ],
)
def test_system_prompt_ends_where_conversations_part(
    messages: list[dict[str, Any]], tools: Any
) -> None:
    tokenizer = full(system_boundary=True)
    prompt = tokenizer.chat(messages, tools)
    boundary = prompt.boundaries[0]
    head = text(prompt._replace(tokens=prompt.tokens[:boundary]), tokenizer)
    assert head.endswith("<|im_end|>\n<|im_start|>user\n")
    other = [*messages[:-1], {"role": "user", "content": "Something else entirely"}]
    assert tokenizer.chat(other, tools).tokens[:boundary] == prompt.tokens[:boundary]
    assert tokenizer.chat(other, tools).boundaries[0] == boundary


@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}])
def test_what_was_said_ends_before_the_reply_is_asked_for(options: dict[str, Any]) -> None:
    tokenizer = full(system_boundary=True)
    messages = said(("system", "You are brief."), ("user", "hi"))
    prompt = tokenizer.chat(messages, None, options)
    end = prompt.boundaries[-1]
    assert text(prompt._replace(tokens=prompt.tokens[end:]), tokenizer).startswith("<|im_start|>as")
    later = [*messages, *said(("assistant", "yes"), ("user", "so"))]
    assert tokenizer.chat(later, None, options).tokens[:end] == prompt.tokens[:end]
    continued = [*messages, *said(("assistant", "yes"))]
    assert len(tokenizer.chat(continued).boundaries) == 1


def test_no_boundary_without_a_system_prompt_or_need() -> None:
    assert len(full(system_boundary=True).chat(said(("user", "hi"))).boundaries) == 1
    assert full().chat(said(("system", "s"), ("user", "hi"))).boundaries == ()
    alone = full(system_boundary=True).chat(said(("system", "s")))
    assert all(0 < b < len(alone.tokens) for b in alone.boundaries)


@pytest.mark.parametrize(
    ("messages", "end"),
    [
        (said(("system", "Be brief.")), "<|im_end|>\n<|im_start|>user\n"),
        (said(("system", "Be brief."), ("user", "hi")), "<|im_end|>\n<|im_start|>assistant\n"),
        (said(("user", "hi"), ("assistant", "so")), "so<|im_end|>\n<|im_start|>user\n"),
    ],
)
def test_beginning_of_messages_is_what_every_continuation_begins_with(
    messages: list[dict[str, Any]], end: str
) -> None:
    begin = plain().beginning(messages=messages)
    assert text(Prompt(begin, (), False), plain()).endswith(end)
    asked = messages[-1]["role"] == "user"
    for more in ("Well", "why", " "):
        role = "assistant" if asked else "user"
        longer = plain().chat([*messages, {"role": role, "content": more}])
        assert longer.tokens[: len(begin)] == begin


@pytest.mark.parametrize("more", ["", "s", "S", " and", "\n", ".", "é", "0", "\t"])
def test_beginning_of_a_text_is_what_longer_texts_begin_with(more: str) -> None:
    for tokenizer in (full(), plain()):
        begin = tokenizer.beginning("Some words that end in the middle of a word")
        whole = tokenizer.encode("Some words that end in the middle of a word" + more, special=True)
        assert len(begin) > 5
        assert whole[: len(begin)] == begin


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no  such\nrole') }}",
        "{{ messages[99].content }}",
        "{{ 1 + 'x' }}",
        "{{ messages | undefined_filter }}",
        "{% for %}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_template_that_refuses(template: str) -> None:
    with pytest.raises(PromptError) as caught:
        changed(template).chat(said(("user", "hi")))
    message = str(caught.value)
    assert message.startswith("The chat template refuses these messages: ")
    assert "\n" not in message
    assert len(message) < 400


def test_template_that_refuses_tells_why() -> None:
    with pytest.raises(PromptError, match="roles must alternate"):
        changed("{{ raise_exception('roles must\nalternate') }}").chat(said(("user", "hi")))


def test_bytes_of_tokens() -> None:
    word = "é😀 x"
    for tokenizer in (full(), plain()):
        tokens = tokenizer.encode(word)
        raw = [tokenizer.token_bytes(t) for t in tokens]
        assert b"".join(map(bytes, raw)) == word.encode()
        assert all(0 <= b < 256 for part in raw for b in part)
    parts = plain().encode("😀")
    assert len(parts) > 1  # a character of several tokens: each has its own bytes
    assert plain().token_bytes(parts[0]) == list(
        "😀".encode()[: len(plain().token_bytes(parts[0]))]
    )
    assert "\ufffd" in plain().token_text(parts[0])


def test_special_token_has_the_bytes_of_its_text() -> None:
    assert bytes(full().token_bytes(2)) == b"<|im_end|>"
    assert full().token_text(2) == "<|im_end|>"


def test_a_character_comes_whole() -> None:
    detokenizer = plain().detokenizer()
    pieces = [detokenizer.add(t) for t in plain().encode("a😀b")]
    assert "".join([*pieces, detokenizer.finish()]) == "a😀b"
    assert all("\ufffd" not in piece for piece in pieces)
    cut = plain().detokenizer()
    shown = "".join(cut.add(t) for t in plain().encode("a😀")[:-1])
    assert shown == "a"
    assert cut.finish() == "\ufffd"


def test_detokenizers_do_not_share_state() -> None:
    one, two = plain().detokenizer(), plain().detokenizer()
    first, *rest = plain().encode("😀")
    assert one.add(first) == ""
    assert two.finish() == ""
    assert "".join(one.add(t) for t in rest) == "😀"


@pytest.mark.parametrize("call", ["", "x", "[1]", '{"arguments": {}}', '{"name": 5}', "null"])
def test_no_call(call: str) -> None:
    with pytest.raises(ValueError):
        full().parse_tool_call(call, [TOOL])


def test_calls() -> None:
    assert full().parse_tool_call('{"name": "f"}', []) == [{"name": "f", "arguments": {}}]
    assert tool_arguments({"x": "é"}) == '{"x": "é"}'
    assert tool_arguments('{"x": 1}') == '{"x": 1}'


def test_threads_may_share_it() -> None:
    conversations = [said(("system", f"number {i}"), ("user", "hi " * i)) for i in range(40)]
    expected = [full().chat(c) for c in conversations]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(full().chat, conversations)) == expected
