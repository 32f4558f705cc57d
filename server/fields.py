"""Request fields that the OpenAI dialects share: types, ranges, and what they mean to the engine.

Everything that reaches the engine thread is range-checked here: MLX does not check the bounds of
a gather, so a bad token id let through would corrupt other people's replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec

from engine.params import SamplingParams
from scheduler.tenant import Limits

from .body import Refused
from .errors import bad_request
from .structured import Answer, StructuredFields, answer_of

MOST_STOPS = 64  # completion of code in editors sends two dozen
MOST_STOP_LENGTH = 1024
MOST_STOP_TEXT = 4096  # characters of all stop strings of a request: each costs microseconds
MOST_CHOICES = 128
MOST_TOP_LOGPROBS = 20
MOST_BIASES = 1024
VERBOSITIES = ("low", "medium", "high")  # clients send it unasked; nothing here is told of it
MOST_METADATA, MOST_KEY, MOST_VALUE = 16, 64, 512

# Fields that would change the answer, and the values of them that ask for nothing.
REFUSED_ALIKE: Refused = {
    "best_of": (1,),
}

# Computed in float32: the reciprocal of a lower temperature, and a logit over a lower penalty,
# would not be finite, and what follows from these is not a distribution any more.
LEAST_TEMPERATURE = 1e-6  # below it the likeliest token is certain anyway
LEAST_REPETITION = 0.01

N = TypeVar("N", int, float)


class StreamOptions(msgspec.Struct):
    """What a stream carries beside text."""

    include_usage: bool | None = None


class GenerationFields(StructuredFields, kw_only=True):
    """The fields of every request for text; None is "not given".

    But ``draft_model`` null asks for no draft.
    """

    model: str
    adapter: str | None = None
    draft_model: str | msgspec.UnsetType | None = msgspec.UNSET
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    cache_salt: str | None = None
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    def check(self) -> None:
        """What has no effect on the reply must be sound nevertheless. Raises ApiError."""
        check_metadata(self.metadata)
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options go with stream.", "stream_options")

    @property
    def choices(self) -> int:
        """How many replies to each prompt."""
        return _within("n", self.n, 1, MOST_CHOICES, 1)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def stops(self) -> list[str]:
        """The stop strings."""
        return checked_stops([self.stop] if isinstance(self.stop, str) else self.stop or [], "stop")

    def stop_ids(self, vocab_size: int, eos: frozenset[int]) -> frozenset[int]:
        """The token ids that end a reply."""
        for token in self.stop_token_ids or ():
            _check_token("stop_token_ids", token, vocab_size)
        return frozenset(self.stop_token_ids or ()) | (frozenset() if self.ignore_eos else eos)

    def answer(self) -> Answer | None:
        """The form that the answer must have."""
        answer = answer_of(self)
        if answer is not None and self.ignore_eos:
            message = f"ignore_eos contradicts {answer.field}, which says where a reply ends."
            raise bad_request(message, "ignore_eos")
        return answer

    def sampling(
        self, defaults: SamplingParams, vocab_size: int, logprobs: int | None
    ) -> SamplingParams:
        """How tokens are chosen; what is not given is as in ``defaults``."""
        d = defaults
        return SamplingParams(
            temperature=self._temperature(d.temperature),
            top_p=self._top_p(d.top_p),
            top_k=max(0, _within("top_k", self.top_k, -1, 1 << 31, d.top_k)),
            min_p=_within("min_p", self.min_p, 0.0, 1.0, d.min_p),
            seed=None if self.seed is None else self._seed(),
            repetition_penalty=self._repetition(d.repetition_penalty),
            presence_penalty=_within("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0),
            frequency_penalty=_within("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0),
            logit_bias=self._biases(vocab_size),
            logprobs=logprobs,
        )

    def _temperature(self, default: float) -> float:
        value = _within("temperature", self.temperature, 0.0, 100.0, default)
        return value if value >= LEAST_TEMPERATURE else 0.0

    def _top_p(self, default: float) -> float:
        value = _within("top_p", self.top_p, 0.0, 1.0, default)
        # 0 means the likeliest token alone; the filter never leaves less than that.
        return max(value, 1e-9)

    def _repetition(self, default: float) -> float:
        return _within(
            "repetition_penalty", self.repetition_penalty, LEAST_REPETITION, 100.0, default
        )

    def _seed(self) -> int:
        return _within("seed", self.seed, -(1 << 63), (1 << 64) - 1, 0)

    def _biases(self, vocab_size: int) -> tuple[tuple[int, float], ...]:
        biases = []
        if len(self.logit_bias or {}) > MOST_BIASES:
            raise bad_request(f"logit_bias has at most {MOST_BIASES} entries.", "logit_bias")
        for key, value in (self.logit_bias or {}).items():
            # int() takes more than digits: signs, spaces, underscores, other scripts.
            if not (key.isascii() and key.isdigit()):
                raise bad_request(f"logit_bias: {key[:40]!r} is not a token id.", "logit_bias")
            token = int(key.lstrip("0")[:20] or "0")
            _check_token("logit_bias", token, vocab_size)
            biases.append((token, _within("logit_bias", value, -100.0, 100.0, 0.0)))
        return tuple(biases)


class Room(NamedTuple):
    """What a reply has room in, in tokens: the model's ``context`` and a tenant's ``limits``.

    ``default`` is its length where the request names none.
    """

    context: int
    default: int
    limits: Limits

    def reply(self, prompt: int, wanted: int | None, param: str, prompt_param: str) -> int:
        """The most tokens of a reply: what is wanted, as far as the context lasts."""
        if wanted is not None and wanted < 1:
            raise bad_request(f"{param} must be at least 1.", param)
        most = self.limits.max_tokens
        if wanted is not None and most is not None and wanted > most:
            raise bad_request(f"{param} is {wanted}; your limit is {most} tokens.", param)
        if prompt == 0:
            raise bad_request("The prompt is empty.", prompt_param)
        left = self._context(prompt, prompt_param) - prompt
        if wanted is not None:
            return min(left, wanted)
        return min(left, self.default, left if most is None else most)

    def _context(self, prompt: int, param: str) -> int:
        """The context, which is longer than the prompt."""
        own = self.limits.context
        limited = own is not None and own < self.context
        context = own if own is not None and limited else self.context
        if prompt < context:
            return context
        whose = "your limit is a context of" if limited else "this model's context is"
        raise bad_request(
            f"The prompt has {prompt} tokens; {whose} {context} tokens, the reply's included.",
            param,
            "context_length_exceeded",
        )


def checked_stops(stops: list[str], param: str) -> list[str]:
    """Stop strings that are not too many, and neither empty nor too long."""
    if len(stops) > MOST_STOPS:
        raise bad_request(f"At most {MOST_STOPS} stop strings are possible.", param)
    for stop in stops:
        if not 0 < len(stop) <= MOST_STOP_LENGTH:
            raise bad_request(f"A stop string has 1 to {MOST_STOP_LENGTH} characters.", param)
    if sum(map(len, stops)) > MOST_STOP_TEXT:
        message = f"All stop strings together have at most {MOST_STOP_TEXT} characters."
        raise bad_request(message, param)
    return stops


def one_of(name: str, value: str | None, words: tuple[str, ...]) -> None:
    """Refuses a word that is none of those that are possible."""
    if value is not None and value not in words:
        raise bad_request(f"{name} is one of {', '.join(words)}.", name)


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Refuses metadata beyond OpenAI's bounds; it is not kept."""
    if len(metadata or {}) > MOST_METADATA:
        raise bad_request(f"metadata has at most {MOST_METADATA} entries.", "metadata")
    for key, value in (metadata or {}).items():
        if len(key) > MOST_KEY or len(value) > MOST_VALUE:
            raise bad_request(
                f"A key of metadata has at most {MOST_KEY} characters, a value {MOST_VALUE}.",
                "metadata",
            )


def check_tokens(param: str, tokens: list[int], vocab_size: int) -> None:
    """Refuses token ids that the model does not have."""
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
        bad = next(t for t in tokens if not 0 <= t < vocab_size)
        _check_token(param, bad, vocab_size)


def _check_token(param: str, token: int, vocab_size: int) -> None:
    if not 0 <= token < vocab_size:
        raise bad_request(
            f"{param}: {token} is not a token id; this model has 0 to {vocab_size - 1}.", param
        )


def _within(name: str, value: N | None, least: N, most: N, default: N) -> N:
    if value is None:
        return default
    if not least <= value <= most:  # also for what is not a number
        raise bad_request(f"{name} must be between {least} and {most}.", name)
    return value
