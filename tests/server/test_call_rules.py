"""Forced calls in the formats of all models that they are known of, read by mlx-lm's parsers."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import jsonschema
import pytest
from mlx_lm.utils import load_tokenizer

from engine import embedded
from engine.grammar import Grammar
from engine.tokenizer import Tokenizer
from server.constraints import wanted
from server.errors import ApiError
from server.output import Output
from server.tool_choice import ToolChoice

FORMATS = (
    *("glm47", "json_tools", "kimi_k2", "laguna", "longcat", "minimax_m2", "mistral"),
    "qwen3_coder",
)
MARKERS = {
    "kimi_k2": [
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
        *("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    ],
    "glm47": ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    "mistral": ["[TOOL_CALLS]", "[ARGS]"],
}
SETTING = {
    "type": "object",
    "properties": {
        "mode": {"type": "string", "enum": ["on", "off"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 99},
        "times": {"type": "array", "items": {"$ref": "#/$defs/time"}, "maxItems": 2},
    },
    "required": ["mode", "level"],
    "additionalProperties": False,
    "$defs": {"time": {"type": "integer", "minimum": 1, "maximum": 3}},
}
NOTE = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "pinned": {"type": "boolean"}},
    "required": ["text"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "set-it", "parameters": SETTING}},
    {"type": "function", "function": {"name": "note", "parameters": NOTE}},
    {"type": "function", "function": {"name": "stop"}},
]
SAID = 'a < b\n\n"x" {1}: <i>é</i>'


@functools.cache
def tokenizer(parser: str, *, marked: bool) -> Tokenizer:
    """The embedded model's with a format's markers, as tokens of their own or not."""
    wrapper = load_tokenizer(embedded.path(), {"tool_parser_type": parser})
    if marked:
        wrapper._tokenizer.add_tokens(MARKERS[parser], special_tokens=True)
    return Tokenizer(wrapper)


def grammar(known: Tokenizer, *, one: bool, name: str | None = None) -> Grammar:
    wish = wanted(None, ToolChoice("required", name), TOOLS, known, one=one)
    assert wish is not None
    return known.grammars.compile(wish().source)


def parsed(known: Tokenizer, tokens: list[int]) -> list[tuple[str, Any]]:
    """The calls of a reply that is nothing else."""
    output = Output(known.detokenizer(), tokenizer=known, tools=TOOLS)
    deltas = [*map(output.add, tokens), output.finish()]
    assert "".join(d.text for d in deltas).strip() == ""
    return [(c.name, json.loads(c.arguments)) for d in deltas for c in d.calls]


def sampled(compiled: Grammar, rng: random.Random) -> list[int]:
    """Tokens of a random reply that keeps to a grammar."""
    tokens: list[int] = []
    follows, eos = compiled.matcher(), compiled.eos
    while not follows.is_stopped() and len(tokens) < 2000:
        mask = follows.compute_bitmask()
        allowed = [i for i, byte in enumerate(mask) if byte for i in _bits(i, byte)]
        if follows.is_accepting() and eos.intersection(allowed):
            break
        token = rng.choice([t for t in allowed if t not in eos])
        assert follows.consume_token(token)
        tokens.append(token)
    assert follows.is_accepting()
    return tokens


def _bits(index: int, byte: int) -> list[int]:
    return [index * 8 + bit for bit in range(8) if byte >> bit & 1]


CASES = [(p, False) for p in FORMATS] + [(p, True) for p in MARKERS]


@pytest.mark.parametrize(("parser", "marked"), CASES)
def test_what_the_grammar_allows_is_read(parser: str, marked: bool) -> None:
    known = tokenizer(parser, marked=marked)
    rng = random.Random(5)
    compiled = grammar(known, one=False, name="set-it")
    for _ in range(10):
        tokens = sampled(compiled, rng)
        for name, arguments in parsed(known, tokens):
            assert name == "set-it"
            jsonschema.validate(arguments, SETTING)


@pytest.mark.parametrize(("parser", "marked"), CASES)
def test_texts_and_several_calls(parser: str, marked: bool) -> None:
    known = tokenizer(parser, marked=marked)
    calls = [("note", {"text": SAID, "pinned": True}), ("stop", {}), ("note", {"text": "x"})]
    for one in (False, True):
        text = "".join(written(parser, calls[:1] if one else calls, marked))
        tokens = list(known.encode(text))
        follows = grammar(known, one=one).matcher()
        assert follows.validate_tokens(tokens) == len(tokens), text
        assert parsed(known, tokens) == (calls[:1] if one else calls)
    follows = grammar(known, one=True).matcher()
    tokens = list(known.encode("".join(written(parser, calls[2:] * 2, marked))))
    assert follows.validate_tokens(tokens) < len(tokens)
    wrong = list(known.encode("".join(written(parser, [("note", {"pinned": True})], marked))))
    assert grammar(known, one=True).matcher().validate_tokens(wrong) < len(wrong)


def written(parser: str, calls: list[tuple[str, dict[str, Any]]], marked: bool) -> list[str]:
    """Calls as the model's template has them."""
    bare = [json.dumps({"name": n, "arguments": a}, ensure_ascii=False) for n, a in calls]
    mine = [(n, json.dumps(a, ensure_ascii=False)) for n, a in calls]
    if parser in ("json_tools", "longcat"):
        tag = "tool_call" if parser == "json_tools" else "longcat_tool_call"
        return ["\n".join(f"<{tag}>\n{call}\n</{tag}>" for call in bare)]
    if parser == "mistral" and marked:
        return [f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in mine]
    if parser == "mistral":
        return [f"[TOOL_CALLS][{', '.join(bare)}]"]
    if parser == "kimi_k2":
        inner = [
            f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{arguments}"
            "<|tool_call_end|>"
            for i, (name, arguments) in enumerate(mine)
        ]
        return ["<|tool_calls_section_begin|>", *inner, "<|tool_calls_section_end|>"]
    outer, (head, key, end, tail), between = TAGS[parser]
    made = [
        head.format(name)
        + "".join(
            key.format(k) + (v if isinstance(v, str) else json.dumps(v)) + end
            for k, v in arguments.items()
        )
        + tail
        for name, arguments in calls
    ]
    if between is None:
        return [outer.format("".join(made))]
    return [between.join(outer.format(call) for call in made)]


GLM = ("{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n", "")
TAGS: dict[str, tuple[str, tuple[str, str, str, str], str | None]] = {
    "glm47": ("<tool_call>{}</tool_call>", GLM, "\n"),
    "laguna": ("<tool_call>{}</tool_call>", GLM, "\n"),
    "minimax_m2": (
        "<minimax:tool_call>\n{}</minimax:tool_call>",
        ('<invoke name="{}">\n', '<parameter name="{}">', "</parameter>\n", "</invoke>\n"),
        None,
    ),
    "qwen3_coder": (
        "<tool_call>\n{}</tool_call>",
        ("<function={}>\n", "<parameter={}>\n", "\n</parameter>\n", "</function>\n"),
        "\n",
    ),
}


@pytest.mark.parametrize(
    ("parser", "function"),
    [
        ("mistral", {"name": "a.b"}),
        ("kimi_k2", {"name": "a:b"}),
        ("glm47", {"name": "a b"}),
        ("minimax_m2", {"name": "a", "parameters": {"properties": {'"': {"type": "string"}}}}),
    ],
)
def test_names_that_a_format_cannot_hold(parser: str, function: dict[str, Any]) -> None:
    known = tokenizer(parser, marked=parser in MARKERS)
    wish = wanted(None, ToolChoice("required"), [{"function": function}], known)
    assert wish is not None
    with pytest.raises(ApiError) as refused:
        wish()
    assert refused.value.param == "tools[0]"


@pytest.mark.parametrize("parameters", [{"properties": [1]}, {"properties": {"a": 1}}])
def test_schemas_that_are_none(parameters: dict[str, Any]) -> None:
    known = tokenizer("qwen3_coder", marked=False)
    tools = [{"function": {"name": "a", "parameters": parameters | {"required": 3}}}]
    wish = wanted(None, ToolChoice("required"), tools, known)
    assert wish is not None
    assert "call0" in wish().source
