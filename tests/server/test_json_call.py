"""Name and arguments of a call while it is being written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.json_call import JsonCall

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\{}[]:,é 😀\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text('a"\\{}é', max_size=4), JSON, max_size=3)
LAYOUTS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")])


def fed(text: str) -> tuple[str | None, list[str]]:
    """The name and the pieces of the arguments, a character at a time."""
    call = JsonCall()
    pieces = []
    for char in text:
        call.add(char)
        pieces.append(call.take())
    return call.name, pieces


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=8), ARGUMENTS, LAYOUTS, st.permutations(["name", "arguments", "id"]))
def test_arguments_are_as_written(
    name: str, arguments: dict, layout: tuple[str, str], order: list[str]
) -> None:
    values = {"name": name, "arguments": arguments, "id": {"name": "other", "arguments": {}}}
    text = json.dumps({key: values[key] for key in order}, separators=layout)
    found, pieces = fed(text)
    assert found == name
    assert "".join(pieces) == json.dumps(arguments, separators=layout)
    whole = JsonCall()
    whole.add(text)
    assert (whole.name, whole.take(), whole.take()) == (name, "".join(pieces), "")


def test_arguments_come_at_once_after_the_name_and_then_as_written() -> None:
    call = JsonCall()
    call.add('{"arguments": {"x": 1}, "name": "lo')
    assert (call.name, call.take()) == (None, "")
    call.add('ok"')
    assert (call.name, call.take()) == ("look", '{"x": 1}')
    call = JsonCall()
    call.add('{"name": "look", "arguments": {"x": "a')
    assert call.take() == '{"x": "a'
    call.add('b"}')
    assert call.take() == 'b"}'
    call.add("}")
    assert call.take() == ""


@pytest.mark.parametrize(
    "text",
    ["look", '"name"', '[{"name": "f"}]', '{"name": 5}', '{"x": {"name": "f"}}', '{"name": ["f"]}'],
)
def test_what_is_no_call_gets_no_name(text: str) -> None:
    assert fed(text) == (None, [""] * len(text))


def test_arguments_that_are_no_object_do_not_come_in_pieces() -> None:
    assert fed('{"name": "f", "arguments": "{}"}')[1] == [""] * 32
