"""Chat templates: programs that come with a model, run in a sandbox within limits.

On worker threads. What a template may do is what the transformers library lets it do, but the
time and the length of what it writes are bounded: a request must not cost more than its share.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerBase

from . import harmony

Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]

MOST_SECONDS = 2.0  # of one thread's own time for one prompt
MOST_TEXT = 1 << 26  # characters of a prompt
MOST_BITS = 4096  # of a power
# Blank at its end, so that it shows whether a template trims what a message ends with.
MARK = "CONTINUED-FROM-HERE "
FAULTS = (TemplateError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError)


class PromptError(ValueError):
    """Messages that the model's template refuses; the text may be shown to the client."""


class _Clock(threading.local):
    """When the rendering under way on this thread is to be over, in its own time."""

    end = float("inf")

    def tick(self) -> str:
        if time.thread_time() > self.end:
            raise PromptError("The chat template takes too long over these messages.")
        return ""


class _Ticking(CodeGenerator):
    """Compiles templates whose loops and macros look at the clock in every round."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        bodies = [loop.body for loop in node.find_all(nodes.For)]
        bodies += [macro.body for macro in node.find_all(nodes.Macro)]
        for body in bodies:
            clock = nodes.EnvironmentAttribute("tick")
            body.insert(0, nodes.ExprStmt(nodes.Call(clock, [], [], None, None)))
        super().visit_Template(node, frame)


class _Generation(Extension):
    """``{% generation %}``, with which templates mark what an assistant wrote; it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way to name them

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_whole"), [], [], body).set_lineno(line)

    def _whole(self, caller: Any) -> str:
        return str(caller())


class _Sandbox(ImmutableSandboxedEnvironment):
    """What templates may use."""

    code_generator_class = _Ticking
    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self._clock = _Clock()
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        del self.globals["lipsum"]

    def tick(self) -> str:
        """Raises PromptError when the time is over."""
        return self._clock.tick()

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuses products and powers that are far too large."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * max(right, 1) > MOST_BITS:
                raise SecurityError("a number is too large")
        elif any(hasattr(side, "__len__") for side in (left, right)):
            sizes = [len(s) if hasattr(s, "__len__") else abs(int(s)) for s in (left, right)]
            if sizes[0] * sizes[1] > MOST_TEXT:
                raise SecurityError("a text is too long")
        return super().call_binop(context, operator, left, right)

    def write(self, template: Template, variables: Mapping[str, Any]) -> str:
        """What ``template`` writes. Raises PromptError where that is too much."""
        parts, size = [], 0
        self._clock.end = time.thread_time() + MOST_SECONDS
        try:
            for part in template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > MOST_TEXT:
                    raise PromptError("The chat template makes too long a text of these messages.")
                self.tick()
        finally:
            del self._clock.end
        return "".join(parts)


class ChatTemplate:
    """How a model's conversations become text; safe to use from several threads."""

    def __init__(self, wrapper: TokenizerWrapper) -> None:
        self._wrapper = wrapper
        self._inner: Any = wrapper._tokenizer
        self._harmony = harmony.is_harmony(self._inner)
        self._sandbox = _Sandbox()
        self._compiled = functools.lru_cache(maxsize=4)(self._sandbox.from_string)
        renders = getattr(type(self._inner), "apply_chat_template", None)
        self._foreign = renders is not PreTrainedTokenizerBase.apply_chat_template

    def render(
        self, messages: Sequence[Message], tools: Tools | None, options: Mapping[str, Any] | None
    ) -> str:
        """The text of a conversation. Raises PromptError.

        A last assistant message is left open, to be continued, unless ``options`` have
        ``continue_final_message`` or ``add_generation_prompt`` say otherwise; all others of them
        go to the template as they are.
        """
        variables = dict(options or {})
        generation = variables.pop("add_generation_prompt", None)
        continued = variables.pop("continue_final_message", None)
        if continued is None:
            last = bool(messages) and messages[-1]["role"] == "assistant"
            continued = last and not generation
        variables["add_generation_prompt"] = not continued if generation is None else generation
        variables["tools"] = list(tools) if tools else None
        if self._harmony:
            variables = harmony.variables(variables)
            messages = harmony.shaped(messages)
        try:
            text = self._text([_plain(m) for m in messages], variables, continued)
        except PromptError:
            raise
        except RecursionError as error:
            raise PromptError("These messages are nested too deeply.") from error
        # A template is a program of its own, which meets messages it does not foresee.
        except FAULTS as error:
            line = " ".join(str(error).split())[:300]
            raise PromptError(f"The chat template refuses these messages: {line}") from error
        # A model may have written half a surrogate pair as an escape in a call's arguments.
        return text.encode("utf-8", "replace").decode("utf-8")

    def _text(self, messages: list[Message], variables: dict[str, Any], continued: bool) -> str:
        if self._wrapper._chat_template is not None or self._foreign:
            return self._python(messages, variables, continued)
        if continued:
            return self._continued(messages, variables)
        return self._written(messages, variables)

    def _python(self, messages: list[Message], variables: dict[str, Any], continued: bool) -> str:
        """By a renderer that is a program in Python, which needs no sandbox."""
        if continued:
            variables["continue_final_message"] = True
        if self._wrapper._chat_template is not None:
            return str(self._wrapper._chat_template(messages, **variables))
        return str(self._inner.apply_chat_template(messages, tokenize=False, **variables))

    def _continued(self, messages: list[Message], variables: dict[str, Any]) -> str:
        """The text up to the end of the last message's content."""
        said = messages[-1].get("content") or ""
        marked = messages[-1] | {"content": said + MARK}
        text = self._written([*messages[:-1], marked], variables)
        at = text.rfind(MARK.strip())
        if at < 0 or said.strip() not in text:
            raise PromptError("The chat template does not let the last message be continued.")
        kept = text[at : at + len(MARK)] == MARK
        return text[:at] if kept else text[:at].rstrip()

    def _written(self, messages: list[Message], variables: dict[str, Any]) -> str:
        source = self._inner.get_chat_template(None, variables["tools"])
        given = self._inner.special_tokens_map | variables | {"messages": messages}
        return self._sandbox.write(self._compiled(source), {"documents": None} | given)


def _plain(message: Message) -> Message:
    """A message without what is not given, its thought under all names that templates have."""
    plain = {name: value for name, value in message.items() if value is not None}
    if "reasoning_content" in plain:
        plain.setdefault("thinking", plain["reasoning_content"])
    return plain


def _tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    """Not jinja2's own, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def _raise(message: str) -> None:
    raise TemplateError(message)
