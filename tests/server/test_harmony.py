"""The format of gpt-oss: channels in replies, and how conversations are rendered."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

from engine import embedded, harmony
from engine.tokenizer import Prompt, Tokenizer
from server.chat import ChatRequest
from server.errors import ApiError
from server.output import Delta, Output
from server.thinking_budget import thinking_budget

from .support import Pieces

TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {}}},)
# The parts of the real template that decide about the shape of messages.
TEMPLATE = """
{%- macro said(header, text) -%}
{{- '<|start|>' + header + '<|message|>' + text -}}
{%- endmacro -%}
{{- said('system', 'Reasoning: ' + reasoning_effort | default('medium')) + '<|end|>' -}}
{%- set called = namespace(name=none) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{%- if message.tool_calls -%}
{%- if message.content and message.thinking -%}{{- raise_exception('not both') -}}{%- endif -%}
{%- if message.thinking -%}
{{- said('assistant<|channel|>analysis', message.thinking) + '<|end|>' -}}
{%- endif -%}
{%- set call = message.tool_calls[0].function -%}
{%- set called.name = call.name -%}
{{- said('assistant to=functions.' + call.name + '<|channel|>commentary json',
    call.arguments | tojson) + '<|call|>' -}}
{%- else -%}
{{- said('assistant<|channel|>final', message.content) + '<|end|>' -}}
{%- endif -%}
{%- elif message.role == 'tool' -%}
{%- if not called.name -%}{{- raise_exception('no call before its result') -}}{%- endif -%}
{{- said('functions.' + called.name + ' to=assistant<|channel|>commentary',
    message.content | tojson) + '<|end|>' -}}
{%- else -%}
{{- said(message.role, message.content) + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""


@functools.cache
def tokenizer() -> Tokenizer:
    wrapper = load_tokenizer(embedded.path())
    tokens = [*harmony.TOKENS, "<|constrain|>"]
    wrapper._tokenizer.add_tokens(tokens, special_tokens=True)
    wrapper._tokenizer.chat_template = TEMPLATE
    return Tokenizer(wrapper)


def parsed(text: str | Sequence[str], **options: Any) -> tuple[Delta, Output, list[Delta]]:
    """What a reply comes to, a text by its tokens."""
    detokenizer: Any = tokenizer().detokenizer()
    tokens: Sequence[int] = tokenizer().encode(text) if isinstance(text, str) else range(len(text))
    if not isinstance(text, str):
        detokenizer = Pieces(text)
    output = Output(detokenizer, tokenizer=tokenizer(), **({"tools": TOOLS} | options))
    deltas = [*map(output.add, tokens), output.finish()]
    return Delta.joined(deltas), output, deltas


def shown(delta: Delta) -> tuple[str, str, list[tuple[str, str]]]:
    return delta.text, delta.thought, [(c.name, c.arguments) for c in delta.calls]


ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json"
    '<|message|>{"x": "é"}<|call|>'
)
CASES: list[tuple[str, str, tuple[str, str, list[tuple[str, str]]]]] = [
    ("thought and answer", ANALYSIS + FINAL, ("Yes.", "Hm.", [])),
    ("answer alone", "<|channel|>final<|message|>Yes.<|return|>", ("Yes.", "", [])),
    ("thought and call", ANALYSIS + CALL, ("", "Hm.", [("look", '{"x": "é"}')])),
    (
        "recipient before the channel",
        '<|start|>assistant to=functions.look<|channel|>commentary json<|message|>{"x": 1}<|call|>',
        ("", "", [("look", '{"x": 1}')]),
    ),
    (
        "recipient at once",
        ' to=functions.look<|channel|>commentary json<|message|>{"x": 1}<|call|>',
        ("", "", [("look", '{"x": 1}')]),
    ),
    (
        "recipient without its namespace",
        "<|channel|>commentary to=look<|message|>{}<|call|>",
        ("", "", [("look", "{}")]),
    ),
    ("no arguments", CALL.replace('{"x": "é"}', ""), ("", "", [("look", "{}")])),
    ("preamble", "<|channel|>commentary<|message|>Well:<|end|>" + FINAL, ("Well:Yes.", "", [])),
    ("a tool of nobody's", "<|channel|>analysis to=python<|message|>1<|end|>", ("", "1", [])),
    ("no end", "<|channel|>final<|message|>Yes", ("Yes", "", [])),
    ("no end of a thought", "<|channel|>analysis<|message|>Hm", ("", "Hm", [])),
    ("half a header", ANALYSIS + "<|start|>assistant<|chan", ("", "Hm.", [])),
    ("no header at all", "Yes, to=day", ("Yes, to=day", "", [])),
    ("an end at once", "<|return|>", ("", "", [])),
    ("after the end", FINAL + "more", ("Yes.", "", [])),
    ("a stray marker", "<|channel|>final<|message|>a<|message|>b<|return|>", ("ab", "", [])),
    (
        "two calls",
        CALL.replace("<|call|>", "<|end|>") + CALL,
        ("", "", [("look", '{"x": "é"}')] * 2),
    ),
    ("an endless header", "<|channel|>" + "x" * 600, ("<|channel|>" + "x" * 600, "", [])),
]


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_reply(
    text: str, expected: tuple[str, str, list[tuple[str, str]]], incremental: bool
) -> None:
    whole, output, _ = parsed(text, incremental=incremental)
    pieces, _, _ = parsed(list(text), incremental=incremental)
    assert shown(whole) == shown(pieces) == expected
    assert output.called == bool(expected[2])


@pytest.mark.parametrize("arguments", ["look around", "[1]", '{"x": '])
def test_malformed_call(arguments: str) -> None:
    text = CALL.replace('{"x": "é"}', arguments)
    whole, output, _ = parsed(text)
    assert (shown(whole), output.called) == ((arguments, "", []), False)
    streamed, output, _ = parsed(text, incremental=True)
    assert (shown(streamed), output.called) == (("", "", [("look", arguments)]), False)
    assert output.ended == "stop"


def test_arguments_come_as_they_are_written() -> None:
    _, _, deltas = parsed(ANALYSIS + CALL, incremental=True)
    pieces = [c for d in deltas for c in d.calls]
    assert pieces[0].name == "look"
    assert pieces[0].id.startswith("call_")
    assert len(pieces) > 4
    assert "".join(p.arguments for p in pieces) == '{"x": "é"}'


def test_thoughts_are_counted() -> None:
    _, output, _ = parsed(ANALYSIS + FINAL)
    assert output.reasoning == len(tokenizer().encode("Hm."))


def test_stop_strings_are_for_the_text() -> None:
    text = ANALYSIS + CALL.replace("<|call|>", "<|end|>") + FINAL
    for said in (text, list(text)):
        delta, output, _ = parsed(said, stops=["analysis", "H", "x", "es"])
        assert (shown(delta), output.stop) == (("Y", "Hm.", [("look", '{"x": "é"}')]), "es")


def test_half_a_stop_string_is_shown_before_what_follows() -> None:
    text = FINAL.replace("<|return|>", "<|end|>") + CALL
    delta, output, deltas = parsed(list(text), stops=["s.!"], incremental=True)
    assert (shown(delta), output.stop) == (("Yes.", "", [("look", '{"x": "é"}')]), None)
    kinds = [bool(d.text) for d in deltas if d]
    assert kinds == sorted(kinds, reverse=True)


def test_no_tools_no_calls() -> None:
    delta, output, _ = parsed(CALL, tools=())
    assert (shown(delta), output.called) == (('{"x": "é"}', "", []), False)


PARTS = st.sampled_from(
    [ANALYSIS, CALL, FINAL, "<|end|>", "<|start|>", "<|channel|>", "<|message|>", " to=", "x", "{"]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(PARTS, max_size=6).map("".join), st.lists(st.integers(0, 400), max_size=12))
def test_split_does_not_matter(text: str, places: list[int]) -> None:
    ends = sorted({p % (len(text) + 1) for p in places} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(ends)]
    for incremental in (False, True):
        whole, output, _ = parsed([text] if text else [], incremental=incremental)
        split, other, _ = parsed(pieces, incremental=incremental)
        assert shown(split) == shown(whole)
        assert (output.ended, output.called) == (other.ended, other.called)
        assert not any(m in whole.text + whole.thought for m in ("<|message|>", "<|call|>"))


def rendered(messages: list[dict[str, Any]], **options: Any) -> str:
    prompt: Prompt = tokenizer().chat(messages, None, options)
    return tokenizer().text_of(prompt.tokens)


def call(name: str, number: int) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": {}}}


def test_each_call_of_a_turn_stands_before_its_result() -> None:
    text = rendered(
        [
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": "Well:",
                "reasoning_content": "Hm.",
                "tool_calls": [call("look", 1), call("see", 2)],
            },
            {"role": "tool", "tool_call_id": "c2", "content": "two"},
            {"role": "tool", "tool_call_id": "c1", "content": "one"},
            {"role": "user", "content": "on"},
        ]
    )
    assert "<|channel|>analysis<|message|>Hm.\n\nWell:<|end|>" in text
    order = [" to=functions.look", '"one"', " to=functions.see", '"two"', "user<|message|>on"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert text.endswith("<|start|>assistant")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "medium"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "none", "enable_thinking": False}, "low"),
        ({"reasoning_effort": "max"}, "high"),
        ({"enable_thinking": False}, "low"),
    ],
)
def test_effort_is_one_that_the_template_knows(options: dict[str, Any], said: str) -> None:
    text = rendered([{"role": "user", "content": "go"}], **options)
    assert f"Reasoning: {said}<|end|>" in text


def test_answer_is_continued() -> None:
    text = rendered([{"role": "user", "content": "go"}, {"role": "assistant", "content": "So"}])
    assert text.endswith("<|channel|>final<|message|>So")
    delta, output, _ = parsed(" it is.<|return|>more")
    assert (delta.text, output.ended) == (" it is.", "stop")


def test_both_ends_end_a_reply() -> None:
    ends = {tokenizer().encode(end)[0] for end in harmony.ENDS}
    assert tokenizer().end_ids == ends
    assert json.loads(parsed(CALL)[0].calls[0].arguments) == {"x": "é"}


def test_thoughts_in_channels_have_no_budget() -> None:
    body = msgspec.convert({"model": "m", "messages": [], "thinking_budget": 9}, ChatRequest)
    with pytest.raises(ApiError) as refused:
        thinking_budget(body, tokenizer())
    assert (refused.value.param, refused.value.code) == ("thinking_budget", "unsupported")
