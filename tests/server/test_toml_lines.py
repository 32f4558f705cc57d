"""Lines of what a TOML document holds, whatever else is written around it."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.toml_lines import Place, line_of, lines_of

DOCUMENT = '''# [no.table]
a = 1  # b = 2
"x.y" = """c = 3
[d]
\\""" = 4
"""
[tenants.one]
models = [
  "a", # "b" = [
  'c]',
]
t.u = {v = [1, {w = 2}], "x y" = 1979-05-27 07:32:00}
[[public]]
text = \'\'\'
[[public]]\'\'\'
[[public]]
[public.sub]
z = -1.5e3
[[public.list]]
[[public.list]]
q = true
'''


def test_every_place_has_its_line() -> None:
    tomllib.loads(DOCUMENT)
    expected: dict[Place, int] = {
        ("a",): 2,
        ("x.y",): 3,
        ("tenants",): 7,
        ("tenants", "one"): 7,
        ("tenants", "one", "models"): 8,
        ("tenants", "one", "models", 0): 9,
        ("tenants", "one", "models", 1): 10,
        ("tenants", "one", "t"): 12,
        ("tenants", "one", "t", "u"): 12,
        ("tenants", "one", "t", "u", "v"): 12,
        ("tenants", "one", "t", "u", "v", 0): 12,
        ("tenants", "one", "t", "u", "v", 1): 12,
        ("tenants", "one", "t", "u", "v", 1, "w"): 12,
        ("tenants", "one", "t", "u", "x y"): 12,
        ("public",): 13,
        ("public", 0): 13,
        ("public", 0, "text"): 14,
        ("public", 1): 16,
        ("public", 1, "sub"): 17,
        ("public", 1, "sub", "z"): 18,
        ("public", 1, "list"): 19,
        ("public", 1, "list", 0): 19,
        ("public", 1, "list", 1): 20,
        ("public", 1, "list", 1, "q"): 21,
    }
    assert lines_of(DOCUMENT) == expected


def test_what_is_not_written_out_is_where_its_table_is() -> None:
    lines = lines_of("\n[a]\nb = 1\n")
    assert line_of(lines, ("a", "c", "d")) == 2
    assert line_of(lines, ("z",)) == 1
    assert line_of({}, ()) == 1


texts = st.text("ab.=[]{}#\"'\\\n ,é", max_size=8)
scalars = st.one_of(st.integers(), st.booleans(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def quoted(text: str) -> str:
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def written(value: Any) -> str:
    """A value on one line of TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{quoted(k)} = {written(v)}' for k, v in value.items())}}}"
    return str(value)


@given(st.dictionaries(texts, st.dictionaries(texts, values, max_size=3), max_size=3))
def test_keys_of_any_document(tables: dict[str, dict[str, Any]]) -> None:
    rows = [""]
    expected: dict[Place, int] = {}
    for name, table in tables.items():
        rows.append(f"[{quoted(name)}]")
        expected[name,] = len(rows)
        for key, value in table.items():
            rows.append(f"{quoted(key)} = {written(value)}")
            expected[name, key] = len(rows)
    text = "\n".join(rows)
    assert tomllib.loads(text) == tables
    found = lines_of(text)
    assert {place: line for place, line in found.items() if len(place) <= 2} == expected
