"""Tool calls in the formats of other models, each by its own parser of mlx-lm."""

from __future__ import annotations

import functools
import json
import time

import pytest
from mlx_lm.utils import load_tokenizer

from engine import embedded
from engine.tokenizer import Tokenizer
from server.call_shapes import SHORT
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


LONG = "\n".join(["x = {y: [1]} # <b>"] * 4000)  # as a file that a call writes
QUOTED = json.dumps({"text": LONG, "y": "a"})
KEYED = f"look<arg_key>text</arg_key><arg_value>{LONG}</arg_value>\n<arg_key>y</arg_key>\n"
KEYED += "<arg_value>a</arg_value>"
K3 = '<|open|>argument key="{}" type="string"<|sep|>{}<|close|>argument<|sep|>'
ATEM = '<atem:parameter name="{}">{}</atem:parameter>\n'
LONG_CALLS = {
    "glm47": KEYED,
    "laguna": KEYED,
    "longcat": KEYED.replace("arg_", "longcat_arg_"),
    "qwen3_coder": (
        f"\n<function=look>\n<parameter=text>\n{LONG}\n</parameter>\n<parameter=y>\na\n</parameter>"
        "\n</function>\n"
    ),
    "kimi_k2": (
        f"<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{QUOTED}<|tool_call_end|>"
    ),
    "kimi_k3": (
        f'<|open|>call tool="look" index="1"<|sep|>{K3.format("text", LONG)}{K3.format("y", "a")}'
        "<|close|>call<|sep|>"
    ),
    "pythonic": f"[look(text={LONG!r}, y='a')]",
    "minimax_m2": (
        f'\n<invoke name="look">\n<parameter name="text">{LONG}</parameter>\n'
        '<parameter name="y">a</parameter>\n</invoke>\n'
    ),
    "minicpm5": (f'"look"><param name="text"><![CDATA[{LONG}]]></param><param name="y">a</param>'),
    "gemma4": f'call:look{{text:<|"|>{LONG}<|"|>,y:<|"|>a<|"|>}}',
    "function_gemma": f"call:look{{text:<escape>{LONG.replace('}', ')')}<escape>,y:a}}",
    "mistral": f"look[ARGS]{QUOTED}",
    "muse_spark": (
        f'\n<atem:invoke name="look">\n{ATEM.format("text", LONG)}{ATEM.format("y", "a")}'
        "</atem:invoke>\n"
    ),
}


def test_a_number_that_is_none_makes_no_call() -> None:
    start, end = tokenizer("qwen3_coder").tool_call or ("", "")
    text = "\n<function=look>\n<parameter=x>\n1e999\n</parameter>\n</function>\n"
    delta, _ = parsed("qwen3_coder", [start, text, end], incremental=False)
    assert (delta.text, delta.calls) == (text, ())


# Of malformed calls; each takes its parser a time that grows with its square, at least.
SLOW = {
    "glm47": "<arg_key>a</arg_key>",
    "laguna": "<arg_value><arg_key></arg_key>",
    "longcat": "<longcat_arg_key></longcat_arg_key>",
    "qwen3_coder": "<function=</function>",
    "kimi_k2": "<|tool_call_begin|> ",
    "kimi_k3": "<|open|>call <|open|>call",
    "pythonic": "[look(x=1,",
    "minimax_m2": "<invoke name=",
    "minicpm5": '"<param name=',
    "gemma4": "call:look{a",
    "function_gemma": "call:look{,",
    "mistral": "look-",
    "muse_spark": '"<atem:invoke',
}


@pytest.mark.parametrize("parser", SLOW)
def test_a_malformed_call_is_given_up_in_time(parser: str) -> None:
    start, end = tokenizer(parser).tool_call or ("", "")
    unit = SLOW[parser]
    for size, most in ((SHORT, 1.0), (MOST_SEARCHED, 0.5)):
        text = unit * (size // len(unit))
        began = time.process_time()
        delta, _ = parsed(parser, [start, text, end], incremental=True)
        assert time.process_time() - began < most
        if size > SHORT:
            assert (delta.text, delta.calls) == (text, ())


@pytest.mark.parametrize("parser", LONG_CALLS)
def test_a_long_call_is_read(parser: str) -> None:
    start, end = tokenizer(parser).tool_call or ("", "")
    delta, _ = parsed(parser, [start, LONG_CALLS[parser], end], incremental=True)
    (call,) = delta.calls
    said = LONG.replace("}", ")") if parser == "function_gemma" else LONG
    assert (call.name, json.loads(call.arguments)) == ("look", {"text": said, "y": "a"})
    assert delta.text == ""


@pytest.mark.parametrize("parser", ENDLESS)
def test_what_is_too_long_to_be_searched_is_text(parser: str) -> None:
    start, end = tokenizer(parser).tool_call or ("", "")
    text = CALLS[parser].removeprefix(start).removesuffix(end) + " " * MOST_SEARCHED
    delta, _ = parsed(parser, [start, text, end], incremental=True)
    assert (delta.text, delta.calls) == (text, ())
