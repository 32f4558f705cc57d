"""Dates and times of JSON schemas as patterns that nothing but real ones match.

The compiler's own know neither leap years nor that validators refuse leap seconds.
"""

from __future__ import annotations

from typing import Any

_LEAP_ENDS = "(0[48]|[2468][048]|[13579][26])"
_YEAR = "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = f"([0-9]{{2}}{_LEAP_ENDS}|{_LEAP_ENDS}00)"
_DAYS = (
    "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    "|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"({_YEAR}-{_DAYS}|{_LEAP_YEAR}-02-29)"
_HOURS = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOURS}:[0-5][0-9](\.[0-9]{{1,9}})?(Z|[+-]{_HOURS})"

PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
NAMED = frozenset(
    ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
)  # whose values are schemas by names
VALUES = frozenset(("const", "enum", "default", "examples"))  # whose values are none


def exact(node: Any, *, named: bool = False) -> Any:
    """A schema, not nested deeply, with patterns for such formats."""
    if isinstance(node, list):
        return [exact(part) for part in node]
    if not isinstance(node, dict):
        return node
    if named:
        return {name: exact(part) for name, part in node.items()}
    made = {
        key: part if key in VALUES else exact(part, named=key in NAMED)
        for key, part in node.items()
    }
    form = made.get("format")
    if not isinstance(form, str) or form not in PATTERNS or made.get("type") != "string":
        return made
    del made["format"]
    if "pattern" in made:
        more = made.get("allOf")
        alike = {"type": "string", "pattern": PATTERNS[form]}
        return made | {"allOf": [*(more if isinstance(more, list) else ()), alike]}
    return made | {"pattern": PATTERNS[form]}
