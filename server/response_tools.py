"""The tools of a Responses request: as the model is offered them, and as the client knows them.

A model is offered plain functions only. Tools of a namespace are offered under one name made
of both, freeform tools as functions of one text; what the model calls is translated back by a
table, so that no name need be taken apart. What only a hosted service can run is left out.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from .body import convert
from .errors import bad_request
from .freeform import Format
from .tool_choice import tool_choice

MOST_TOOLS = 1024
MOST_NAME = 256  # characters
MOST_GRAMMARS = 256 << 10  # characters of all tools' grammars
SYNTAXES = ("lark", "regex")
JOINT = "__"  # between a namespace and a name
# Types whose calls a service answers by itself; the client can do nothing with one.
HOSTED = frozenset(
    {
        "code_interpreter",
        "file_search",
        "image_generation",
        "mcp",
        "programmatic_tool_calling",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
FREEFORM = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
TOOLS_SCHEMA: dict[str, Any] = {
    "items": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": ["function", "custom", "namespace", *sorted(HOSTED)]}},
    }
}
Kind = Literal["function", "custom"]


class Known(NamedTuple):
    """A tool as the client calls it."""

    kind: Kind
    name: str
    namespace: str | None = None


class FunctionSpec(msgspec.Struct):
    """A function that the client runs; its schema is passed on as it is."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomSpec(msgspec.Struct):
    """A tool that takes any text; ``format`` may hold a grammar that it should follow."""

    name: str
    description: str | None = None
    format: dict[str, Any] | None = None


class NamespaceSpec(msgspec.Struct):
    """Tools under a common name."""

    name: str
    tools: list[dict[str, Any]]
    description: str | None = None


class AllowedTools(msgspec.Struct):
    """The tools of a request that may be called this time."""

    tools: list[dict[str, Any]]
    mode: str = "auto"


class Toolbox:
    """The tools of one request. Raises ApiError 400."""

    def __init__(self, tools: list[dict[str, Any]], choice: str | dict[str, Any] | None) -> None:
        self._known: dict[str, Known] = {}
        self._flat: dict[Known, str] = {}
        self._offered: dict[str, dict[str, Any]] = {}
        self.formats: dict[str, Format] = {}  # of freeform tools, by the model's names for them
        self._grammars = 0  # characters
        for i, tool in enumerate(tools):
            self._add(tool, f"tools[{i}]", None)
        self.all = list(self._offered.values())
        self.choice = tool_choice(self._translated(choice), self.all)
        self.offered = self.choice.shown(self.all)

    def known(self, flat: str) -> Known:
        """What the model's name for a tool means to the client."""
        return self._known.get(flat) or Known("function", flat)

    def flat(self, known: Known) -> str:
        """The model's name for a tool, which an earlier turn may have had and this one has not."""
        return self._flat.get(known) or _flat(known)

    def _add(self, tool: dict[str, Any], where: str, namespace: str | None) -> None:
        kind = str(tool.get("type"))
        if kind == "function":
            spec = convert(tool, FunctionSpec, where)
            self._offer(Known("function", spec.name, namespace), _function(spec), where)
        elif kind == "custom":
            custom = convert(tool, CustomSpec, where)
            known = Known("custom", custom.name, namespace)
            format = _format(custom, where)
            self._offer(known, _freeform(custom, format), where)
            if format is not None:
                self._keep(self._flat[known], format)
        elif kind == "namespace" and namespace is None:
            self._add_namespace(convert(tool, NamespaceSpec, where), where)
        elif kind not in HOSTED:
            raise bad_request(
                f"A tool of type {kind[:40]!r} cannot be served.",
                f"{where}.type",
                "unsupported",
            )

    def _keep(self, name: str, format: Format) -> None:
        self.formats[name] = format
        self._grammars += len(format.definition)
        if self._grammars > MOST_GRAMMARS:
            raise bad_request("The tools' grammars are too large.", "tools")

    def _add_namespace(self, spec: NamespaceSpec, where: str) -> None:
        _check_name(spec.name, where)
        for i, tool in enumerate(spec.tools):
            self._add(tool, f"{where}.tools[{i}]", spec.name)

    def _offer(self, known: Known, function: dict[str, Any], where: str) -> None:
        _check_name(known.name, where)
        if known in self._flat or known._replace(kind=_other(known.kind)) in self._flat:
            raise bad_request(f"The tool {known.name[:80]!r} is there twice.", f"{where}.name")
        if len(self._flat) >= MOST_TOOLS:
            raise bad_request(f"At most {MOST_TOOLS} tools are possible.", "tools")
        name, number = _flat(known), 2
        while name in self._known:  # "a__b" of no namespace, and "b" of the namespace "a"
            name, number = f"{_flat(known)}_{number}", number + 1
        self._known[name], self._flat[known] = known, name
        self._offered[name] = {"type": "function", "function": {"name": name} | function}

    # which of them may be called

    def _translated(self, choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        """``tool_choice`` as it would be if the client knew the tools as the model does."""
        if not isinstance(choice, dict):
            return choice
        if choice.get("type") != "allowed_tools":
            name = self._named(choice, "tool_choice")
            if name is None:
                raise bad_request("This tool cannot be forced.", "tool_choice", "unsupported")
            return {"type": "function", "name": name}
        allowed = convert(choice, AllowedTools, "tool_choice")
        if len(allowed.tools) > MOST_TOOLS:
            raise bad_request(f"At most {MOST_TOOLS} tools are possible.", "tool_choice.tools")
        found = [self._named(c, f"tool_choice.tools[{i}]") for i, c in enumerate(allowed.tools)]
        names = [name for name in found if name is not None]
        tools = [{"type": "function", "name": name} for name in names]
        return choice | {"mode": allowed.mode, "tools": tools} if tools else "none"

    def _named(self, choice: dict[str, Any], where: str) -> str | None:
        """The model's name for the tool that a choice means; None for a hosted one."""
        kind = str(choice.get("type"))
        if kind in HOSTED:
            return None
        name, namespace = choice.get("name"), choice.get("namespace")
        for known, flat in self._flat.items():
            if (known.kind, known.name) == (kind, name) and namespace in (None, known.namespace):
                return flat
        raise bad_request(f"There is no tool {str(name)[:80]!r}.", f"{where}.name")


def _flat(known: Known) -> str:
    return known.name if known.namespace is None else f"{known.namespace}{JOINT}{known.name}"


def _other(kind: Kind) -> Kind:
    return "custom" if kind == "function" else "function"


def _check_name(name: str, where: str) -> None:
    if not 0 < len(name) <= MOST_NAME:
        raise bad_request(f"A tool's name has 1 to {MOST_NAME} characters.", f"{where}.name")


def _function(spec: FunctionSpec) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if spec.description is not None:
        made["description"] = spec.description
    if spec.parameters is not None:
        made["parameters"] = spec.parameters
    if spec.strict is not None:
        made["strict"] = spec.strict
    return made


def _format(spec: CustomSpec, where: str) -> Format | None:
    """The grammar that a tool's input is to follow."""
    given, where = spec.format or {"type": "text"}, f"{where}.format"
    if given.get("type") == "text":
        return None
    if given.get("type") != "grammar":
        raise bad_request("The type of a format is text or grammar.", where)
    format = convert(given, Format, where)
    if format.syntax not in SYNTAXES:
        raise bad_request(f"The syntax of a grammar is {' or '.join(SYNTAXES)}.", where)
    return format


def _freeform(spec: CustomSpec, format: Format | None) -> dict[str, Any]:
    """A freeform tool as a function; a grammar is told, too, for not every reply is kept to it."""
    texts = [spec.description] if spec.description else []
    if format is not None:
        texts.append(f"The input follows this {format.syntax} grammar:\n{format.definition}")
    return {"description": "\n\n".join(texts), "parameters": FREEFORM}
