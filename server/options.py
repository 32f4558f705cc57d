"""Options of a command as fields of dataclasses: name, type, default and help in one place."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import field, fields
from inspect import Parameter
from typing import Any, ClassVar, TypeVar, get_type_hints

from typer import Option

T = TypeVar("T")
Command = Callable[..., None]


class Options:
    """A group of options: a dataclass, each field an ``option``. ``panel`` is its title in help."""

    __slots__ = ()
    panel: ClassVar[str]


def option(default: T, text: str, **more: Any) -> T:
    """A field that is an option, with ``text`` as its help; ``more`` goes to ``typer.Option``."""
    return field(default=default, metadata={"option": Option(help=text, **more)})


def with_options(variables: str | None = None) -> Callable[[Command], Command]:
    """Gives a command the options of the groups that it has as parameters.

    With ``variables``, an option can also come from the environment, under its name after that.
    A switch that is off by default has no ``--no-`` form.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[Parameter] = []
        groups: dict[str, Any] = {}
        for each in signature.parameters.values():
            if issubclass(each.annotation, Options):
                groups[each.name] = each.annotation
                parameters += _parameters(each.annotation, variables)
            else:
                parameters.append(each.replace(kind=Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {
                name: group(**{f.name: given.pop(f.name) for f in fields(group)})
                for name, group in groups.items()
            }
            command(**given, **made)

        # Typer makes options of what it finds there.
        vars(run)["__signature__"] = signature.replace(parameters=parameters)
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameters(group: Any, variables: str | None) -> Iterator[Parameter]:
    kinds = get_type_hints(group)
    for each in fields(group):
        declared = copy.copy(each.metadata["option"])
        declared.default = each.default
        declared.rich_help_panel = group.panel
        if variables is not None:
            declared.envvar = variables + each.name.upper()
        if each.default is False:
            declared.param_decls = ("--" + each.name.replace("_", "-"),)
        yield Parameter(
            each.name, Parameter.KEYWORD_ONLY, default=declared, annotation=kinds[each.name]
        )
