"""From what a request asks of its replies' form to a compiled grammar.

On the event loop; compiling happens on threads of its own, see ``compiling``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from engine.grammar import Grammar, GrammarError
from engine.steering import Constraint
from engine.tokenizer import Prompt, Tokenizer
from scheduler.live import LoadedModel
from scheduler.metrics import ModelMetrics
from scheduler.tenant import Tenant

from .call_rules import call_rules, can_force
from .compiling import TooBusy, TooLong
from .errors import ApiError, bad_request
from .freeform import Format, bound
from .generation import TextThreads
from .structured import Answer
from .tool_choice import ToolChoice

T = TypeVar("T")
MOST_SOURCE = 2 << 20  # characters, of all tools together
RETRY_AFTER = 5.0  # seconds


class Wanted(NamedTuple):
    """The Lark grammar of a reply, and of its ``parts`` by the fields that ask for them."""

    source: str
    parts: tuple[tuple[str, str], ...]


Wish = Callable[[], Wanted]


def wanted(
    answer: Answer | None,
    choice: ToolChoice,
    tools: Sequence[Mapping[str, Any]] | None,
    tokenizer: Tokenizer,
    *,
    one: bool = False,
    formats: Mapping[str, Format] | None = None,
) -> Wish | None:
    """What tells how replies have to look; None where anything will do.

    ``tools`` are all that are offered, in the shape of chats; ``one`` allows but one call;
    ``formats`` are the grammars of freeform ones, by name. Schemas may be large, so the grammar is
    to be written on a worker thread.
    """
    if not choice.forced and answer is None:
        return None
    return partial(_wanted, answer, choice, tools, tokenizer, one, formats or {})


def _wanted(
    answer: Answer | None,
    choice: ToolChoice,
    tools: Sequence[Mapping[str, Any]] | None,
    tokenizer: Tokenizer,
    one: bool,
    formats: Mapping[str, Format],
) -> Wanted:
    """How replies have to look. Raises ApiError."""
    blamed = "tool_choice" if answer is None or choice.forced else answer.field
    if tokenizer.harmony:  # whose answers lie in channels
        message = f"{blamed}: this model's replies have a form that cannot be enforced."
        raise bad_request(message, blamed, "unsupported")
    may = [(i, tool["function"]) for i, tool in enumerate(tools or ()) if choice.may(tool)]
    numbered = [(i, bound(function, formats)) for i, function in may]
    if not numbered:
        assert answer is not None
        return Wanted(_whole(answer), ((answer.field, _whole(answer)),))
    if not can_force(tokenizer):
        message = f"{blamed}: this model's tool calls have a form that cannot be enforced."
        raise bad_request(message, blamed, "unsupported")
    calls = call_rules(tokenizer, numbered, one=one)
    if len(calls) > MOST_SOURCE:
        raise bad_request("The tools' schemas are too large to be enforced.", "tools")
    forced = f"start: calls\n{calls}"
    if choice.forced or answer is None:
        return Wanted(forced, (("tools", forced),))
    if answer.whole:
        raise bad_request(f"{answer.field} cannot be combined with tools.", answer.field)
    source = f"start: answer | calls\n{answer.rules}{calls}"
    return Wanted(source, ((answer.field, _whole(answer)), ("tools", forced)))


def _whole(answer: Answer) -> str:
    return answer.rules if answer.whole else f"start: answer\n{answer.rules}"


async def compiled(
    threads: TextThreads,
    model: LoadedModel,
    wish: Wish | None,
    tenant: Tenant,
    metrics: ModelMetrics,
) -> Grammar | None:
    """The grammar, out of the cache or compiled in bounded time. Raises ApiError."""
    if wish is None:
        return None
    wanted = await threads.run(wish)
    grammars = model.tokenizer.grammars
    found = grammars.kept(wanted.source)
    if found is not None:
        metrics.grammar("hit")
        return found
    began = time.perf_counter()
    run = partial(threads.compiling.run, tenant=tenant.name)
    try:
        if not grammars.ready:  # what is refused need not wait for that
            await run(partial(_blaming, grammars.check, wanted))
            await run(grammars.tokenizer, limited=False)
            began = time.perf_counter()
        found = await run(partial(_blaming, grammars.compile, wanted))
    except (ApiError, GrammarError, TooLong, TooBusy) as error:
        metrics.grammar("refused")
        raise _refusal(wanted.parts[0][0], error) from error
    metrics.grammar("miss", time.perf_counter() - began)
    return found


def _refusal(field: str, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GrammarError):
        return bad_request(f"{field} cannot be enforced: {error}", field)
    if isinstance(error, TooLong):
        return bad_request(f"{field} takes too long to compile.", field)
    message = "Too many grammars are being compiled. Try again."
    return ApiError(503, message, "server_error", "grammars_busy", None, RETRY_AFTER)


def _blaming(work: Callable[[str], T], wanted: Wanted) -> T:
    """Works on a worker thread; what is wrong is put down to the part that has it."""
    try:
        return work(wanted.source)
    except GrammarError:
        for field, source in wanted.parts if len(wanted.parts) > 1 else ():
            try:
                work(source)
            except GrammarError as error:
                raise bad_request(f"{field} cannot be enforced: {error}", field) from error
        raise


def constraint(grammar: Grammar | None, tokenizer: Tokenizer, prompt: Prompt) -> Constraint | None:
    """What a reply to ``prompt`` has to keep to."""
    if grammar is None:
        return None
    barred = set(grammar.eos)
    if tokenizer.tool_call is not None:
        begin = tokenizer.added_token(tokenizer.tool_call[0])
        barred |= set() if begin is None else {begin}
    return Constraint(grammar, prompt.thoughts, barred=frozenset(barred))
