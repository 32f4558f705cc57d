"""Grammars of freeform tools as expressions, and what they bind."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from server.constraints import wanted
from server.freeform import MOST_REGEX, Format, input_pattern
from server.response_tools import Toolbox

from .scripted import tokenizer

PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk
    | update_hunk  // the usual one
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
change: ("@@" [" " /(.+)/] LF)? (("+" | "-" | " ") /(.*)/ LF)+

%import common.LF
"""
SIGNS = """
start: SIGN{2} (word ~ 1..2)?
SIGN.2: "\\x41" | "b+"i
word: /[x-z]/ END
END: "\\n"
"""


def matches(definition: str, text: str, syntax: str = "lark") -> bool:
    pattern = input_pattern(Format(syntax, definition))
    assert pattern is not None
    return re.fullmatch(pattern, text) is not None


def test_an_expression_says_what_the_grammar_says() -> None:
    patch = "*** Begin Patch\n*** Update File: a.py\n@@ def f():\n-x\n+\n*** End Patch\n"
    assert matches(PATCH, patch)
    assert matches(PATCH, patch.replace("@@ def f():\n", "").removesuffix("\n"))
    assert not matches(PATCH, patch.replace("-x\n+\n", ""))
    assert not matches(PATCH, patch.replace("Update", "Change"))
    assert matches(SIGNS, "AB+x\n")
    assert matches(SIGNS, "AA")
    assert not matches(SIGNS, "Aby\n")
    assert not matches(SIGNS, "AAx\nx\nx\n")
    assert matches("^a|b$", "b", "regex")
    assert not matches("a|b", "ab", "regex")


@pytest.mark.parametrize(
    "definition",
    [
        'start: "(" start? ")"',
        'start: a\na: b\nb: a | "x"',
        'start: "a"\n%ignore " "',
        "start: X\n%import other.X",
        "start: X & Y\nX: /a/\nY: /b/",
        'a: "x"',
        'start: ("x"',
        f'start: "{"x" * MOST_REGEX}"',
        "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(40)) + 'a40: "x"',
    ],
)
def test_some_grammars_are_no_expression(definition: str) -> None:
    assert input_pattern(Format("lark", definition)) is None


def test_long_grammars_are_read_in_linear_time() -> None:
    began = time.process_time()
    for part in ('"a" | ', "( ", "\n\n ", '/a/ "', "// \n", "a: a\n"):
        input_pattern(Format("lark", "start: a\n" + part * (100_000 // len(part))))
    assert time.process_time() - began < 5


def custom(definition: str, syntax: str = "lark") -> dict[str, Any]:
    grammar = {"type": "grammar", "syntax": syntax, "definition": definition}
    return {"type": "custom", "name": "apply", "description": "Changes files.", "format": grammar}


class Coder(Tokenizer):
    """One whose model writes calls in a form that is not JSON."""

    tool_format = "qwen3_coder"  # type: ignore[assignment]


def test_grammars_bind_calls_in_json() -> None:
    tools = Toolbox([custom('start: "a" /[bc]/')], "required")
    sources = []
    for writes in (tokenizer(), Coder(tokenizer()._wrapper)):
        wish = wanted(None, tools.choice, tools.all, writes, formats=tools.formats)
        assert wish is not None
        sources.append(wish().source)
    assert ["[bc]" in source for source in sources] == [True, False]
    # The prompt does not change with what is enforced.
    assert "pattern" not in tools.offered[0]["function"]["parameters"]["properties"]["input"]
