"""Tool calls in the formats of other models, each by its own parser of mlx-lm."""

from __future__ import annotations

import functools
import json

import pytest
from mlx_lm.utils import load_tokenizer

from engine import embedded
from engine.tokenizer import Tokenizer
from server.calls import MOST_SEARCHED
from server.output import Delta, Output

from .support import Pieces

PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOLS = ({"type": "function", "function": {"name": "look", "parameters": PARAMETERS}},)
CALLS = {
    "json_tools": '<tool_call>{"name": "look", "arguments": {"x": 1}}</tool_call>',
    "longcat": '<longcat_tool_call>{"name": "look", "arguments": {"x": 1}}</longcat_tool_call>',
    "glm47": "<tool_call>look<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>",
    "qwen3_coder": (
        "<tool_call>\n<function=look>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0"
        '<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|><|tool_calls_section_end|>'
    ),
    "pythonic": "<|tool_call_start|>[look(x=1)]<|tool_call_end|>",
    "minimax_m2": (
        '<minimax:tool_call><invoke name="look"><parameter name="x">1</parameter></invoke>'
        "</minimax:tool_call>"
    ),
    "gemma4": "<|tool_call>call:look{x:1}<tool_call|>",
    "function_gemma": "<start_function_call>call:look{x:1}<end_function_call>",
    "mistral": '[TOOL_CALLS]look[ARGS]{"x": 1}',
}
ENDLESS = [name for name in CALLS if name not in ("json_tools", "longcat")]


@functools.cache
def tokenizer(parser: str) -> Tokenizer:
    return Tokenizer(load_tokenizer(embedded.path(), {"tool_parser_type": parser}))


def parsed(parser: str, texts: list[str], *, incremental: bool) -> tuple[Delta, list[Delta]]:
    output = Output(
        Pieces(texts), tokenizer=tokenizer(parser), tools=TOOLS, incremental=incremental
    )
    deltas = [*map(output.add, range(len(texts))), output.finish()]
    assert output.called == any(d.calls for d in deltas)
    return Delta.joined(deltas), deltas


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("parser", CALLS)
def test_call(parser: str, incremental: bool) -> None:
    for texts in (["So: ", CALLS[parser]], list("So: " + CALLS[parser])):
        delta, deltas = parsed(parser, texts, incremental=incremental)
        (call,) = delta.calls
        assert (delta.text, call.name, json.loads(call.arguments)) == ("So: ", "look", {"x": 1})
        pieces = sum(len(d.calls) for d in deltas)
        streams = incremental and tokenizer(parser).json_calls and len(texts) > 2
        assert (pieces > 1) == streams


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("parser", CALLS)
def test_malformed_call(parser: str, incremental: bool) -> None:
    start, end = tokenizer(parser).tool_call or ("", "")
    delta, _ = parsed(parser, [start, "<", "b&", end], incremental=incremental)
    assert (delta.text, delta.calls) == ("<b&", ())


@pytest.mark.parametrize("parser", ENDLESS)
def test_what_is_too_long_to_be_searched_is_text(parser: str) -> None:
    start, end = tokenizer(parser).tool_call or ("", "")
    text = CALLS[parser].removeprefix(start).removesuffix(end) + " " * MOST_SEARCHED
    delta, _ = parsed(parser, [start, text, end], incremental=True)
    assert (delta.text, delta.calls) == (text, ())
