"""Between text and tokens: chat templates, encoding, and decoding a reply as it comes.

On worker threads and the event loop, never on the engine thread. Knows nothing of HTTP.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper, _byte_decoder
from tokenizers.decoders import DecodeStream

from cache.loan import NOBODY

from .grammar import Grammars
from .harmony import end_ids, is_harmony
from .infill import Infill, infill_of
from .segments import SegmentedEncoder, encoded
from .templates import ChatTemplate, Message, PromptError, Tools
from .thoughts import Phase, Thoughts

__all__ = ["Detokenizer", "Message", "Prompt", "PromptError", "Tokenizer", "Tools"]

# Two questions that differ in their first letter: what prompts with either have in common ends
# where the system prompt ends, whatever the template puts around it.
PROBES = ("A", "z")
# Likewise for a plain text, to whose last token any of these might be joined.
CONTINUATIONS = ("A", "z", " a", "\n", "0", ".", ",", "é")
CONTEXT = 8  # tokens
ANCHOR = "☺"  # joins no token with what follows it
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, SyntaxError)  # in parsers
JSON_PARSERS = ("json_tools", "longcat")  # of mlx-lm


class Prompt(NamedTuple):
    """A rendered and tokenised conversation.

    ``boundaries`` are prompt lengths, ascending, at which it pays to keep the state of layers
    that cannot be cut. ``thinking`` tells that the reply begins inside a thought, ``thoughts``
    how thoughts are marked in it, None where the model has none.
    """

    tokens: tuple[int, ...]
    boundaries: tuple[int, ...]
    thinking: bool
    thoughts: Thoughts | None = None


class Tokenizer:
    """A model's tokenizer and chat template, safe to use from several threads at once.

    ``system_boundary`` makes prompts carry the ends of their system prompt and of what was said,
    at the price of rendering twice; it serves models whose layers are not all kept by token.
    """

    def __init__(self, wrapper: TokenizerWrapper, *, system_boundary: bool = False) -> None:
        self._wrapper = wrapper
        self._inner: Any = wrapper._tokenizer
        self._system_boundary = system_boundary
        # The library's own object is immutable here, and can encode without Python's lock.
        self._fast: Any = getattr(self._inner, "backend_tokenizer", None)
        self._segments = None if self._fast is None else SegmentedEncoder(self._fast)
        self._contextual = self._fast is not None and _is_contextual(self._fast)
        self._lock = threading.Lock()
        self._template = ChatTemplate(wrapper)
        self.grammars = Grammars(self._fast, wrapper.eos_token_ids)
        self._is_bpe = isinstance(wrapper.detokenizer, BPEStreamingDetokenizer)
        self.think: tuple[str, str] | None = (
            (wrapper.think_start, wrapper.think_end) if wrapper.has_thinking else None
        )
        self.tool_call: tuple[str, str] | None = (
            (wrapper.tool_call_start, wrapper.tool_call_end) if wrapper.has_tool_calling else None
        )
        parser = getattr(wrapper.tool_parser, "__module__", "").rpartition(".")[2]
        # Whether a call is a JSON object, so that it can be read before it is whole.
        self.json_calls: bool = parser in JSON_PARSERS
        self.harmony: bool = is_harmony(self._inner)
        self.infill: Infill | None = infill_of(self._inner)
        # What ends a chat's reply beside the model's own end tokens.
        self.end_ids: frozenset[int] = end_ids(self._inner) if self.harmony else frozenset()

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered at all."""
        return bool(self._wrapper.has_chat_template)

    def encode(self, text: str, *, special: bool = False, domain: str = NOBODY) -> tuple[int, ...]:
        """Token ids of ``text``; ``special`` adds what the model wants around a plain text.

        What is kept so that it need not be tokenised again is kept for a trust ``domain``.
        """
        if self._segments is not None and not special:
            return tuple(self._segments.encode(text, domain))
        if self._fast is not None:
            return tuple(encoded(self._fast, text, special=special))
        with self._lock:
            return tuple(self._inner.encode(text, add_special_tokens=special))

    def chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        options: Mapping[str, Any] | None = None,
        domain: str = NOBODY,
    ) -> Prompt:
        """Renders and tokenises a conversation; by default a last assistant message is
        to be continued.

        ``options`` are as in ``ChatTemplate.render``, ``domain`` as in ``encode``. Raises
        PromptError.
        """
        text = self._template.render(messages, tools, options)
        tokens = self.encode(text, domain=domain)
        ends = {
            self._system_end(tokens, messages, tools, options, domain),
            self._turn_end(text, tokens, messages, tools, options),
        }
        thinking = self.think is not None and text.rstrip().endswith(self.think[0])
        thoughts = self._thoughts(text, thinking, continued=_continued(messages))
        return Prompt(tokens, tuple(sorted(ends - {0})), thinking, thoughts)

    @property
    def tool_format(self) -> str:
        """The name of mlx-lm's parser for the model's tool calls; empty where it has none."""
        parser = self._wrapper.tool_parser if self.tool_call is not None else None
        return "" if parser is None else str(parser.__module__).rpartition(".")[2]

    def added_token(self, text: str) -> int | None:
        """The id of the token that ``text`` is by itself, as markers are; None for other text."""
        token = None if self._fast is None else self._fast.token_to_id(text)
        return token if token in self._inner.added_tokens_decoder else None

    def _thoughts(self, text: str, thinking: bool, continued: bool) -> Thoughts | None:
        """How thoughts are marked in the reply to a rendered prompt."""
        if self.think is None:
            return None
        start = tuple(self._wrapper.think_start_tokens)
        begins: Phase = "inside" if thinking else "outside"
        # Where the template has put an empty thought, the model is meant not to think.
        closed = text.rstrip().endswith(self.think[1])
        if not (thinking or continued or closed) and len(start) == 1:
            begins = "opening"
        return Thoughts(start, tuple(self._wrapper.think_end_tokens), begins)

    def beginning(
        self,
        text: str | None = None,
        messages: Sequence[Message] = (),
        tools: Tools | None = None,
    ) -> tuple[int, ...]:
        """The tokens that all prompts begin with which begin with a text, or with messages.

        That is a little less than all of them: how the end is tokenised depends on what follows.
        Raises PromptError.
        """
        if text is None:
            return self._beginning(messages, tools, None, NOBODY)
        whole = self.encode(text, special=True)
        for probe in CONTINUATIONS:
            other = self.encode(text + probe, special=True)
            whole = whole[: _common(whole, other)]
        return whole

    def between(
        self, before: str | Sequence[int], after: str, domain: str = NOBODY
    ) -> tuple[int, ...] | None:
        """The prompt for what stands between two texts; None where the model knows none."""
        if self.infill is None:
            return None
        if isinstance(before, str):
            before = self.encode(before, domain=domain)
        return self.infill.prompt(self._lead(), before, self._inside(after, domain))

    def _lead(self) -> tuple[int, ...]:
        """What the model wants before every text."""
        plain, whole = self.encode("a"), self.encode("a", special=True)
        starts = range(len(whole) - len(plain) + 1)
        return next((whole[:i] for i in starts if whole[i : i + len(plain)] == plain), ())

    def _inside(self, text: str, domain: str) -> tuple[int, ...]:
        """The tokens of a text that does not stand at the beginning of one."""
        anchor = self.encode(ANCHOR)
        anchored = self.encode(ANCHOR + text, domain=domain) if self._contextual else ()
        if anchored and anchored[: len(anchor)] == anchor:
            return anchored[len(anchor) :]
        return self.encode(text, domain=domain)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of several tokens."""
        decoder = self.detokenizer()
        return "".join([*map(decoder.add, tokens), decoder.finish()])

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """Decodes one reply, which continues the text of ``context`` if that is given."""
        if self._fast is None:
            return _SlowDetokenizer(self._wrapper)
        return _FastDetokenizer(self._fast, context[-CONTEXT:] if self._contextual else ())

    def parse_tool_call(self, text: str, tools: Tools) -> list[dict[str, Any]]:
        """The calls, each ``{"name", "arguments"}``, in the text between two markers.

        Raises ValueError where it is no call.
        """
        try:
            parsed: Any = self._wrapper.tool_parser(text, list(tools))
        # The parsers are many and small, and meet whatever a model writes.
        except (*MALFORMED, ArithmeticError, MemoryError) as error:
            raise ValueError(str(error)) from error
        calls = parsed if isinstance(parsed, list) else [parsed]
        for call in calls:
            if not (isinstance(call, dict) and isinstance(call.get("name"), str)):
                raise ValueError("not a call")
            call.setdefault("arguments", {})
        return calls

    def token_text(self, token: int) -> str:
        """The text of one token by itself."""
        return str(self._inner.decode([token]))

    def token_bytes(self, token: int) -> list[int]:
        """The bytes of one token; of a part of a character, that part."""
        return list(self._token_bytes(token))

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019 - lives as long as the model does
    def _token_bytes(self, token: int) -> bytes:
        piece = self._inner.convert_ids_to_tokens(token) if self._is_bpe else None
        table = _byte_decoder() if piece else {}
        if piece and all(c in table for c in piece):
            return bytes(table[c] for c in piece)
        return self.token_text(token).encode("utf-8", "replace")

    def _system_end(
        self,
        tokens: Sequence[int],
        messages: Sequence[Message],
        tools: Tools | None,
        options: Mapping[str, Any] | None,
        domain: str,
    ) -> int:
        """Number of leading tokens that any conversation with this system prompt begins with."""
        if not self._system_boundary:
            return 0
        leading = 0
        while leading < len(messages) and messages[leading]["role"] == "system":
            leading += 1
        if not leading and not tools:
            return 0
        try:
            begin = self._beginning(messages[:leading], tools, options, domain)
        except PromptError:
            return 0
        common = _common(tokens, begin)
        return common if 0 < common < len(tokens) else 0

    def _turn_end(
        self,
        text: str,
        tokens: Sequence[int],
        messages: Sequence[Message],
        tools: Tools | None,
        options: Mapping[str, Any] | None,
    ) -> int:
        """Number of leading tokens without those that ask for the reply.

        In the prompt of the next turn something else may stand there: many templates begin a
        reply with a thought, and leave thoughts out of what was said before.
        """
        if not (self._system_boundary and messages) or messages[-1]["role"] == "assistant":
            return 0
        quiet = {**(options or {}), "add_generation_prompt": False}
        try:
            said = self._template.render(messages, tools, quiet)
        except PromptError:
            return 0
        if not (said and text.startswith(said)):
            return 0
        asks = self.encode(text[len(said) :])
        end = len(tokens) - len(asks)
        return end if asks and tuple(tokens[end:]) == asks else 0

    def _beginning(
        self,
        messages: Sequence[Message],
        tools: Tools | None,
        options: Mapping[str, Any] | None,
        domain: str,
    ) -> tuple[int, ...]:
        """What all conversations that go on after ``messages`` begin with. Raises PromptError."""
        asked = bool(messages) and messages[-1]["role"] == "user"
        role = "assistant" if asked else "user"
        one, other = (
            self.encode(
                self._template.render(
                    [*messages, {"role": role, "content": probe}], tools, options
                ),
                domain=domain,
            )
            for probe in PROBES
        )
        return one[: _common(one, other)]


class Detokenizer(Protocol):
    """The text of one reply as its tokens come; never half a character."""

    def add(self, token: int) -> str:
        """The text that ``token`` completes, often empty."""
        ...

    def finish(self) -> str:
        """What is left at the end."""
        ...


class _FastDetokenizer:
    """By the tokenizers library's own stream."""

    def __init__(self, fast: Any, context: Sequence[int]) -> None:
        self._fast = fast
        self._stream = DecodeStream(list(context), skip_special_tokens=False)
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        self._pending.append(token)
        text = self._stream.step(self._fast, token)
        if text is None:
            return ""
        self._pending.clear()
        return str(text)

    def finish(self) -> str:
        text = self._fast.decode(self._pending, skip_special_tokens=False) if self._pending else ""
        self._pending.clear()
        return str(text)


class _SlowDetokenizer:
    """By mlx-lm, for tokenizers that are written in Python."""

    def __init__(self, wrapper: TokenizerWrapper) -> None:
        self._inner = wrapper.detokenizer

    def add(self, token: int) -> str:
        self._inner.add_token(token)
        return str(self._inner.last_segment)

    def finish(self) -> str:
        self._inner.finalize()
        return str(self._inner.last_segment)


def _is_contextual(fast: Any) -> bool:
    """Whether a token's text depends on what stands before it, as with SentencePiece's spaces."""
    tokens = fast.encode("a b c", add_special_tokens=False).ids
    alone = [fast.decode([token], skip_special_tokens=False) for token in tokens]
    return bool(fast.decode(tokens, skip_special_tokens=False) != "".join(alone))


def _continued(messages: Sequence[Message]) -> bool:
    """Whether the reply goes on with a last message of the assistant's own."""
    return bool(messages) and messages[-1]["role"] == "assistant"


def tool_arguments(arguments: object) -> str:
    """A call's arguments as the JSON text that clients expect."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
