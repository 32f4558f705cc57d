"""What form an answer must have: the fields that ask for one, as rules of a Lark grammar.

Sizes are checked here, before anything is compiled. On the event loop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from .errors import ApiError, bad_request
from .finite import is_finite
from .formats import exact

MOST_SCHEMA = 256 << 10  # bytes, as JSON
MOST_NODES = 20_000
MOST_DEPTH = 60
MOST_REGEX = 4096  # characters
MOST_GRAMMAR = 32 << 10  # characters
MOST_CHOICES = 1024
MOST_CHOICE = 4096  # characters
# What is a multiple of n is known by an automaton of n states.
MOST_MULTIPLE = 10_000
# Enough to indent, and a model that likes blanks too much comes to an end.
BLANKS = r"[ \n\r\t]{0,20}"


class StructuredFields(msgspec.Struct, kw_only=True):
    """The fields that say what form an answer must have; at most one of them may."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


class Answer(NamedTuple):
    """The form of an answer, which ``field`` asks for.

    ``rules`` define ``answer``, or, where they are a ``whole`` grammar, ``start``.
    """

    field: str
    rules: str
    whole: bool = False


def answer_of(fields: StructuredFields) -> Answer | None:
    """The form that a request asks for; None for none. Raises ApiError."""
    found: list[Answer] = []
    if fields.response_format is not None:
        answer = response_format("response_format", fields.response_format)
        found += [] if answer is None else [answer]
    if fields.structured_outputs is not None:
        found.append(_structured_outputs(fields.structured_outputs))
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(fields, f"guided_{kind}")
        if value is not None:
            found.append(_KINDS[kind](f"guided_{kind}", value))
    if len(found) > 1:
        raise bad_request(f"{found[1].field} contradicts {found[0].field}.", found[1].field)
    return found[0] if found else None


def response_format(field: str, value: Mapping[str, Any]) -> Answer | None:
    """What OpenAI's ``response_format`` asks for; None for text. Raises ApiError."""
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return json_object(field)
    if kind != "json_schema":
        raise bad_request(f"The type of {field} is text, json_object or json_schema.", field)
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping) or "schema" not in inner:
        raise bad_request(f"{field} needs json_schema, an object with a schema.", field)
    return json_answer(field, inner["schema"], lenient=inner.get("strict") is False)


def json_object(field: str) -> Answer:
    """Any JSON object."""
    return json_answer(field, {"type": "object"})


def json_answer(field: str, schema: Any, *, lenient: bool = False) -> Answer:
    """JSON by a schema. Raises ApiError.

    Keywords that cannot be enforced are refused, or left unenforced if it is ``lenient``.
    """
    return Answer(field, f"answer: {json_rule(field, schema, lenient=lenient)}\n")


def json_rule(field: str, schema: Any, *, lenient: bool = False) -> str:
    """What stands for JSON by ``schema`` in a Lark grammar. Raises ApiError."""
    if not isinstance(schema, dict):
        raise bad_request(f"{field}: a schema must be an object.", field)
    _check(field, schema)
    options = {"whitespace_pattern": BLANKS, "lenient": lenient, "coerce_one_of": lenient}
    text = json.dumps(exact(schema) | {"x-guidance": options})
    if len(text) > MOST_SCHEMA:
        raise bad_request(f"{field}: the schema is larger than {MOST_SCHEMA >> 10} KiB.", field)
    if '"$ref"' in text and not is_finite(schema):
        raise bad_request(f"{field}: values of this schema would never end; see its $ref.", field)
    return f"%json {text}"


def _check(field: str, schema: dict[str, Any]) -> None:
    """Refuses what would take long to compile."""
    nodes, multiple = 0, 1
    level: list[dict[str, Any] | list[Any]] = [schema]
    for _ in range(MOST_DEPTH):
        nodes += len(level)
        if nodes > MOST_NODES:
            raise bad_request(f"{field}: the schema has more than {MOST_NODES} parts.", field)
        children: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                multiple = math.lcm(multiple, _check_node(field, node))
                children += node.values()
            else:
                children += node
        if multiple > MOST_MULTIPLE:
            raise bad_request(f"{field}: multipleOf is too large to be enforced.", field)
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            return
    raise bad_request(f"{field}: the schema is nested deeper than {MOST_DEPTH}.", field)


def _check_node(field: str, node: dict[str, Any]) -> int:
    """The states that it takes to enforce the node's ``multipleOf``."""
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        shown = _shown(reference)
        raise bad_request(f"{field}: {shown} refers to another document, which is not read.", field)
    pattern = node.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MOST_REGEX:
        raise _too_long(field, "A pattern", MOST_REGEX)
    divisor = node.get("multipleOf")
    if isinstance(divisor, bool) or not isinstance(divisor, (int, float)):
        return 1
    if not 0 < divisor < math.inf:
        raise bad_request(f"{field}: multipleOf must be greater than 0.", field)
    if divisor > MOST_MULTIPLE or divisor < 1 / MOST_MULTIPLE:
        return MOST_MULTIPLE + 1
    exact = Fraction(str(divisor))
    return exact.numerator * exact.denominator


def _json(field: str, value: Any) -> Answer:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise bad_request(f"{field} is not valid JSON.", field) from error
    return json_answer(field, value)


def _regex(field: str, value: Any) -> Answer:
    if not isinstance(value, str):
        raise bad_request(f"{field} must be a string.", field)
    if len(value) > MOST_REGEX:
        raise _too_long(field, "It", MOST_REGEX)
    _check_text(field, value)
    # The whole answer has to match, with anchors or without.
    value = value.removeprefix("^")
    if value.endswith("$") and not value.endswith("\\$"):
        value = value[:-1]
    return Answer(field, f"answer: /{regex_to_lark(value)}/\n")


def _choice(field: str, value: Any) -> Answer:
    if not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        raise bad_request(f"{field} must be a list of texts, at least one.", field)
    if len(value) > MOST_CHOICES:
        raise bad_request(f"{field}: at most {MOST_CHOICES} choices are possible.", field)
    for choice in value:
        _check_text(field, choice)
        if not 0 < len(choice) <= MOST_CHOICE:
            raise bad_request(f"{field}: a choice has 1 to {MOST_CHOICE} characters.", field)
    return Answer(field, f"answer: {' | '.join(map(quoted, value))}\n")


def _grammar(field: str, value: Any) -> Answer:
    """Lark, or EBNF as llama.cpp has it, whose rules are defined by ``::=``."""
    if not isinstance(value, str):
        raise bad_request(f"{field} must be a string.", field)
    if len(value) > MOST_GRAMMAR:
        raise _too_long(field, "It", MOST_GRAMMAR)
    _check_text(field, value)
    if "multipleOf" in value or "x-guidance" in value:
        raise bad_request(f"{field}: multipleOf and x-guidance are for schemas alone.", field)
    if "::=" in value:
        try:
            value = gbnf_to_lark(value)
        except (GbnfToLarkError, RecursionError) as error:
            raise bad_request(f"{field} is not valid EBNF: {str(error)[:200]}", field) from error
    return Answer(field, value, whole=True)


_KINDS = {"json": _json, "regex": _regex, "choice": _choice, "grammar": _grammar}


def _structured_outputs(value: Mapping[str, Any]) -> Answer:
    field = "structured_outputs"
    given = {key: part for key, part in value.items() if part not in (None, False)}
    if len(given) != 1:
        raise bad_request(f"{field} needs one of {', '.join(_KINDS)}, json_object.", field)
    ((kind, part),) = given.items()
    if kind == "json_object":
        return json_object(field)
    if kind not in _KINDS:
        raise bad_request(f"{field}: {_shown(kind)} is not supported.", field, "unsupported")
    return _KINDS[kind](field, part)


def quoted(text: str) -> str:
    """``text`` as a literal of a Lark grammar."""
    return json.dumps(text)


def _check_text(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_request(f"{field} has a lone surrogate.", field) from error


def _too_long(field: str, what: str, most: int) -> ApiError:
    return bad_request(f"{field}: {what} has more than {most} characters.", field)


def _shown(text: str) -> str:
    return repr(text[:40])
