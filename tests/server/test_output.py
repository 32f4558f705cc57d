"""From tokens to text, thoughts and calls: stop strings, markers, and how they are split."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

from engine import embedded
from engine.tokenizer import Tokenizer
from server.calls import MOST_CALL
from server.output import Delta, Output
from server.sections import MarkedSections

from .support import Pieces

TOOLS = ({"type": "function", "function": {"name": "look"}},)
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(load_tokenizer(embedded.path()))


def parse(texts: Sequence[str], *, last: str = "", **options: Any) -> tuple[Delta, Output]:
    """What a reply made of ``texts`` comes to."""
    options = {"tokenizer": tokenizer(), "tools": TOOLS} | options
    output = Output(Pieces(texts, last), **options)  # type: ignore[arg-type]
    deltas = [output.add(i) for i in range(len(texts))]
    return Delta.joined([*deltas, output.finish()]), output


def shown(delta: Delta) -> tuple[str, str, list[tuple[int, str, Any]]]:
    return (
        delta.text,
        delta.thought,
        [(c.number, c.name, json.loads(c.arguments)) for c in delta.calls],
    )


def call(name: str = "look", **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


CASES: list[tuple[str, str, dict[str, Any], tuple[str, str, list[Any]], str | None]] = [
    ("plain", "hello there", {}, ("hello there", "", []), None),
    ("empty", "", {}, ("", "", []), None),
    ("stop", "one two three", {"stops": ["two"]}, ("one ", "", []), "stop"),
    ("stop at once", "two", {"stops": ["two"]}, ("", "", []), "stop"),
    ("the earliest stop", "a bc d", {"stops": ["d", "bc"]}, ("a ", "", []), "stop"),
    ("a stop inside another", "xabcy", {"stops": ["abd", "b"]}, ("xa", "", []), "stop"),
    ("nearly a stop", "one tw", {"stops": ["two"]}, ("one tw", "", []), None),
    ("a stop after half of it", "ttwo", {"stops": ["two"]}, ("t", "", []), "stop"),
    (
        "a stop in a thought",
        "<think>a STOP b</think>c STOP d",
        {"stops": ["STOP"]},
        ("c ", "a STOP b", []),
        "stop",
    ),
    ("thought", "<think>\nhm\n</think>\n\nyes", {}, ("yes", "hm\n", []), None),
    ("inside a thought", "\nhm</think>yes", {"thinking": True}, ("yes", "hm", []), None),
    ("unfinished thought", "hm</thin", {"thinking": True}, ("", "hm</thin", []), None),
    ("text, thought, text", "a<think>b</think>c", {}, ("ac", "b", []), None),
    ("call", call(x=1), {}, ("", "", [(0, "look", {"x": 1})]), None),
    ("text and call", "well:" + call(), {}, ("well:", "", [(0, "look", {})]), None),
    ("call in a thought", "hm" + call(), {"thinking": True}, ("", "hm", [(0, "look", {})]), None),
    (
        "two calls",
        call(x=1) + "\n" + call("see", y="</tool>"),
        {},
        ("", "", [(0, "look", {"x": 1}), (1, "see", {"y": "</tool>"})]),
        None,
    ),
    (
        "one call wanted",
        call(x=1) + "\n" + call(x=2) + "more",
        {"one_call": True},
        ("", "", [(0, "look", {"x": 1})]),
        "tool_calls",
    ),
    ("text after a call", call() + "\ndone", {}, ("done", "", [(0, "look", {})]), None),
    (
        "call without arguments",
        '<tool_call>{"name": "f"}</tool_call>',
        {},
        ("", "", [(0, "f", {})]),
        None,
    ),
    ("malformed call", "<tool_call>look!</tool_call>.", {}, ("look!.", "", []), None),
    ("call without name", "<tool_call>{}</tool_call>", {}, ("{}", "", []), None),
    ("no call in it", "<tool_call>[]</tool_call>", {}, ("[]", "", []), None),
    (
        "malformed, then sound",
        "<tool_call>x</tool_call>" + call(),
        {},
        ("x", "", [(0, "look", {})]),
        None,
    ),
    ("unfinished call", '<tool_call>{"name": "lo', {}, ('{"name": "lo', "", []), None),
    ("half an end", "<tool_call>x</tool", {}, ("x</tool", "", []), None),
    ("half a start", "x<tool_ca", {}, ("x<tool_ca", "", []), None),
    (
        "a stop in a call",
        call(x="a STOP b") + "STOP c",
        {"stops": ["STOP"]},
        ("", "", [(0, "look", {"x": "a STOP b"})]),
        "stop",
    ),
    ("no tools offered", call(), {"tools": ()}, (call(), "", []), None),
    (
        "plain text dialect",
        "<think>a" + call(),
        {"tokenizer": None},
        ("<think>a" + call(), "", []),
        None,
    ),
    ("deep call", "<tool_call>" + "[" * 99_999, {}, ("[" * 99_999, "", []), None),
]


@pytest.mark.parametrize(
    ("text", "options", "expected", "ended"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_reply(
    text: str, options: dict[str, Any], expected: tuple[str, str, list[Any]], ended: str | None
) -> None:
    for texts in ([text], list(text)) if text else ([],):
        delta, output = parse(texts, **options)
        assert shown(delta) == expected
        assert output.ended == ended
        assert output.over() == (ended is not None)
        assert output.called == bool(expected[2])


def test_text_is_not_held_back_without_need() -> None:
    output = Output(Pieces(["a", " t", "x", " tw", "o!"]), ["two"])  # type: ignore[arg-type]
    assert [output.add(i).text for i in range(5)] == ["a", " ", "tx", " ", ""]
    assert output.ended == "stop"


def test_text_that_begins_a_stop_again_and_again_comes_nevertheless() -> None:
    output = Output(Pieces("a" * 99 + "b"), ["aaab"])  # type: ignore[arg-type]
    texts = [output.add(i).text for i in range(100)]
    assert texts == [""] * 3 + ["a"] * 96 + [""]
    assert output.stop == "aaab"


def test_nothing_comes_after_the_end() -> None:
    output = Output(Pieces(["ab", "c"], last="d"), ["b"])  # type: ignore[arg-type]
    assert [output.add(0), output.add(1), output.finish()] == [Delta("a"), Delta(), Delta()]


def test_stop_in_what_is_decoded_last() -> None:
    delta, output = parse(["one "], last="two", stops=["two"])
    assert delta.text == "one "
    assert output.ended == "stop"


def test_calls_have_names_of_their_own() -> None:
    delta, _ = parse([call(), call()])
    assert len({c.id for c in delta.calls}) == 2
    assert all(c.id.startswith("call_") for c in delta.calls)


def test_lone_surrogates_of_a_call_can_be_sent() -> None:
    delta, _ = parse(['<tool_call>{"name": "f\\ud800", "arguments": {"x": "\\udfff"}}</tool_call>'])
    assert delta.calls[0].name == "f?"
    assert json.loads(delta.calls[0].arguments) == {"x": "?"}
    delta, _ = parse(['<tool_call>{"name": "f", "arguments": "\\udfff"}</tool_call>'])
    assert delta.calls[0].arguments == "?"


def cut(text: str, places: Iterable[int]) -> list[str]:
    ends = sorted({p % (len(text) + 1) for p in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


FRAGMENTS = st.sampled_from(
    [
        *MARKERS,
        "<think",
        "</",
        "<",
        "tool_call>",
        "\n",
        "END",
        "EN",
        "NDE",
        "x",
        "é 😀",
        call(x=1),
        call(),
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=8).map("".join)
CUTS = st.lists(st.integers(0, 400), max_size=12)
STOPS = st.lists(st.sampled_from(["END", "NDE", "</think>x", "\nx", "😀"]), max_size=2)


@settings(deadline=None, max_examples=300)
@given(TEXTS, CUTS, STOPS, st.booleans(), st.booleans())
def test_split_does_not_matter(
    text: str, places: list[int], stops: list[str], thinking: bool, one_call: bool
) -> None:
    options = {"stops": stops, "thinking": thinking, "one_call": one_call}
    whole, output = parse([text], **options)
    split, other = parse(cut(text, places), **options)
    assert shown(split) == shown(whole)
    assert other.ended == output.ended


@settings(deadline=None, max_examples=300)
@given(
    st.text("abc", max_size=20), CUTS, st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)
)
def test_plain_text_ends_where_the_first_stop_is_complete(
    text: str, places: list[int], stops: list[str]
) -> None:
    ends = [(text.index(s) + len(s), -len(s)) for s in stops if s in text]
    expected = text
    if ends:
        end, length = min(ends)  # of those complete at once, the longest
        expected = text[: end + length]
    delta, output = parse(cut(text, places), stops=stops, tokenizer=None)
    assert delta.text == expected
    assert output.over() == bool(ends)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60).map(str.lstrip))
def test_tokens_of_a_text_give_the_text(text: str) -> None:
    output = Output(tokenizer().detokenizer())
    deltas = [output.add(token) for token in tokenizer().encode(text)]
    assert Delta.joined([*deltas, output.finish()]).text == text


@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_markers_are_seen_however_they_are_tokenised(text: str) -> None:
    expected, _ = parse([text])
    output = Output(tokenizer().detokenizer(), tokenizer=tokenizer(), tools=TOOLS)
    deltas = [output.add(token) for token in tokenizer().encode(text)]
    assert shown(Delta.joined([*deltas, output.finish()])) == shown(expected)


PIECES = [
    '<tool_call>\n{"na',
    'me": "look", "arg',
    'uments": {"x',
    '": "a}"',
    "}",
    "}\n</tool",
    "_call>done",
]


def test_call_comes_as_it_is_written() -> None:
    output = Output(Pieces(PIECES), tokenizer=tokenizer(), tools=TOOLS, incremental=True)
    deltas = [output.add(i) for i in range(len(PIECES))]
    first, *more = [c for d in deltas for c in d.calls]
    assert (first.number, first.name, first.arguments) == (0, "look", "")
    assert first.id.startswith("call_")
    assert [(c.number, c.id, c.name, c.arguments) for c in more] == [
        (0, "", "", '{"x'),
        (0, "", "", '": "a}"'),
        (0, "", "", "}"),
    ]
    assert deltas[-1].text == "done"
    assert output.called


@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        ("<tool_call>look!</tool_call>.", [], "look!."),
        ('<tool_call>{"name": "f"', [("f", "")], ""),
        ('<tool_call>{"name": "f", "arguments": {"x', [("f", '{"x')], ""),
        ('<tool_call>{"name": "f", "arguments": {"x"}}</tool_call>.', [("f", '{"x"}')], "."),
        ('<tool_call>{"name": "f", "arguments": {}} x</tool_call>.', [("f", "{}")], "."),
        ('<tool_call>{"name": "f"}{"name": "g"}</tool_call>.', [("f", "")], "."),
    ],
)
def test_malformed_call_stays_as_it_was_sent(
    text: str, calls: list[tuple[str, str]], rest: str, caplog: pytest.LogCaptureFixture
) -> None:
    for texts in ([text], list(text)):
        caplog.clear()
        delta, output = parse(texts, incremental=True)
        assert [(c.name, c.arguments) for c in delta.calls] == calls
        assert (delta.text, output.called) == (rest, False)
        assert "tool call" in caplog.text
        whole, _ = parse(texts)
        assert not whole.calls


@pytest.mark.parametrize("incremental", [False, True])
def test_one_malformed_call_spoils_the_turn_only_where_it_was_sent(incremental: bool) -> None:
    broken = '<tool_call>{"name": "f", "arguments": {"x</tool_call>'
    _, output = parse([call(), broken], incremental=incremental)
    assert output.called != incremental


@pytest.mark.parametrize("incremental", [False, True])
def test_call_without_end_is_text(incremental: bool) -> None:
    text = "x" * (MOST_CALL + 1)
    delta, output = parse(["<tool_call>", text, "y</tool_call>z"], incremental=incremental)
    assert delta.text == text + "yz"
    assert not output.called


def test_endless_arguments_stop_coming() -> None:
    begin = '<tool_call>{"name": "f", "arguments": {"x": "'
    delta, output = parse([begin, "x" * MOST_CALL, "y", "</tool_call>z"], incremental=True)
    assert (delta.text, output.called) == ("z", False)
    assert len(delta.calls[0].arguments) < MOST_CALL


def test_stop_string_is_told() -> None:
    for stops, stop in ((["x", "two"], "two"), (["one", "e t"], "one"), (["zwei"], None)):
        _, output = parse(["one t", "wo"], stops=stops)
        assert output.stop == stop
        assert (output.ended == "stop") == (stop is not None)
    _, output = parse([call(), "x"], one_call=True, stops=["x"])
    assert (output.ended, output.stop) == ("tool_calls", None)


def test_tokens_of_thoughts_are_counted() -> None:
    _, output = parse(["a", "<think>", "b", "c", "</think>", "d", "<think>", "e"])
    assert output.reasoning == 3
    _, output = parse(["b", "c</think>", "d"], thinking=True)
    assert output.reasoning == 1


VALUES = st.recursive(
    st.none() | st.integers() | st.text('a"\\{}[]é\n', max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3)
CALLS = ARGUMENTS.map(lambda arguments: call("look", x=arguments))
BROKEN = CALLS.map(lambda text: text.replace("}", "", 1))


@settings(deadline=None, max_examples=300)
@given(st.lists(FRAGMENTS | CALLS | BROKEN, max_size=6).map("".join), CUTS, STOPS, st.booleans())
def test_pieces_make_the_whole(
    text: str, places: list[int], stops: list[str], one_call: bool
) -> None:
    options = {"stops": stops, "one_call": one_call}
    whole, output = parse([text], **options)
    pieces, other = parse(cut(text, places), incremental=True, **options)
    if pieces.calls and not other.called:  # one was sent that turned out to be malformed
        assert whole.text != pieces.text
        return
    assert shown(pieces) == shown(whole)
    assert (other.ended, other.stop, other.called) == (output.ended, output.stop, output.called)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_an_answer_of_a_form_has_no_markers(size: int) -> None:
    """What looks like one inside a JSON text belongs to it; stop strings still count."""
    answer = '{"a": "<think>no</think> <tool_call>{}</tool_call>"'
    said = f"why</think>\n{answer}"
    sections = MarkedSections(
        {
            "text": [("<think>", "thought"), ("<tool_call>", "call")],
            "thought": [("</think>", "text")],
            "call": [("</tool_call>", "text")],
        },
        ["STOP"],
        thinking=True,
        formed=True,
    )
    whole = said + "STOP and more"
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    found = [s for piece in pieces for s in sections.split(piece)] + sections.flush()
    of = lambda kind: "".join(s.text for s in found if s.kind == kind)
    assert of("thought") == "why"
    assert of("text").strip() == answer
    assert of("call") == ""
    assert any(s.kind == "end" for s in found)
