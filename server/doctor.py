"""``commons doctor``: what this machine can do, and what is misconfigured. Changes nothing.

The exit code is 0 where a server can run, warnings or not, and 1 where something is a problem.

The JSON report (``--json``) holds ``version`` (of this form, 1), ``mlx_commons`` (the program's
version), ``status`` (the worst of all), and ``checks``: a list of ``name``, ``status``
(``ok``, ``warning``, ``problem``), ``message`` and ``fix`` (null where nothing is to be done).
Checks that mean nothing on this machine are left out.
"""

from __future__ import annotations

import importlib.metadata
import json
import queue
import resource
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .exit import leave
from .finding import Finding, Named, Status, problem

if TYPE_CHECKING:
    from .config import ServerConfig

FORM = 1
STATUSES: tuple[Status, ...] = ("ok", "warning", "problem")
COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}

Report = Sequence[tuple[str, Finding]]


def doctor(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="COMMONS_CONFIG", help="The server's settings file, if any."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for programs.")
    ] = False,
) -> None:
    """Say what this machine can do and what is misconfigured, with the command that mends it."""
    from .doctor_machine import machine_checks

    files = resource.getrlimit(resource.RLIMIT_NOFILE)  # before mlx-lm is imported and sets it
    group: Any = context.find_root().command
    found, checks = _of_settings(group.commands["serve"], config)
    report = [*examined(machine_checks(found, files)), *examined(checks)]
    if as_json:
        typer.echo(json.dumps(as_object(report), indent=2))
    else:
        show(report, Console(highlight=False))
    leave(int(worst(report) == "problem"))


def _of_settings(serve: Any, config: Path | None) -> tuple[ServerConfig | None, list[Named]]:
    try:
        from .doctor_config import config_checks
    except Exception as error:  # whatever a broken installation raises
        broken = problem(f"the server cannot be imported: {type(error).__name__}: {error}")
        return None, [Named("config", lambda: broken)]
    return config_checks(serve, config)


def worst(report: Report) -> Status:
    """The status of the whole."""
    return max((f.status for _, f in report), key=STATUSES.index, default="ok")


def as_object(report: Report) -> dict[str, Any]:
    """The report for programs."""
    return {
        "version": FORM,
        "mlx_commons": importlib.metadata.version("mlx-commons"),
        "status": worst(report),
        "checks": [{"name": name, **found._asdict()} for name, found in report],
    }


def show(report: Report, console: Console) -> None:
    """The report for people."""
    width = max(len(name) for name, _ in report)
    for name, found in report:
        sign = f"[{COLOURS[found.status]}]{found.status:7}[/]"
        console.print(f"{sign}  {name:{width}}  {escape(found.message)}", soft_wrap=True)
        if found.fix is not None:
            console.print(f"{'':{width + 9}}  mend: {escape(found.fix)}", soft_wrap=True)
    counts = {s: sum(f.status == s for _, f in report) for s in STATUSES}
    console.print(
        f"{counts['ok']} ok, {counts['warning']} warnings, {counts['problem']} problems",
        soft_wrap=True,
    )


def examined(checks: Iterable[Named]) -> list[tuple[str, Finding]]:
    """What all checks find, one after the other."""
    return [(named.name, _bounded(named)) for named in checks]


def _bounded(named: Named) -> Finding:
    """What a check finds, unless it hangs: on a disk that is gone, or a driver."""
    found: queue.Queue[Finding] = queue.Queue()

    def work() -> None:
        try:
            found.put(named.check())
        except Exception as error:  # a check that fails is a finding, too
            found.put(problem(f"could not be checked: {type(error).__name__}: {error}"))

    threading.Thread(target=work, daemon=True).start()
    try:
        return found.get(timeout=named.seconds)
    except queue.Empty:
        return problem(f"no answer within {named.seconds:.0f} s")
