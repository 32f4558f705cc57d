"""The decode step of a batch: proposals, one pass over all rows, what was accepted.

Synchronous; owned by the engine thread. Knows nothing of trees or of scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .adapters import Adapters
from .network import Network
from .plans import DecodePlan, Span, rank
from .rows import Row
from .sampling import RowSampling, Sampled, describe, sample
from .speculation import NO_PROPOSALS, Proposals, Speculation
from .states import StateBatch, arrays
from .steering import End, Mask, Masks, joined


class Choice(NamedTuple):
    """A generated token, with log-probabilities where the row asked for them."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Outcome(NamedTuple):
    """What a step gave a row: one token, and before it those of ``proposed`` that were right.

    ``end`` is set where a grammar leaves nothing to follow; of an ``error`` no token counts.
    """

    row: Row
    choices: list[Choice]
    proposed: int
    end: End | None = None


class InFlight(NamedTuple):
    """A decode step that has been submitted; one sampler for each of its tokens."""

    spans: list[Span]
    proposals: Proposals
    samplers: list[RowSampling]
    sampled: Sampled


class Decoding:
    """Decode steps of one network; at most one is under way.

    ``batch`` holds the states of the layers that no plan serves.
    """

    def __init__(self, network: Network, adapters: Adapters) -> None:
        self.batch = StateBatch()
        self.speculation: Speculation | None = None
        self.input_tokens = 0
        self._network = network
        self._adapters = adapters
        self._inflight: InFlight | None = None

    @property
    def busy(self) -> bool:
        """Whether a submitted step has not been collected."""
        return self._inflight is not None

    def submit(self, rows: Sequence[Row], left: Sequence[int] | None = None) -> None:
        """Starts one step for all ``rows``, each of which has room for a token.

        ``left`` is how many tokens each of them may still generate; without it nothing is
        proposed.
        """
        assert self._inflight is None
        proposals = NO_PROPOSALS
        if self.speculation is not None and left is not None:
            proposals = _permitted(self.speculation.proposals(rows, left))
        spans = self.spans(rows, proposals)
        logits = self.forward(spans, _ids(spans, proposals))
        samplers, positions = _samplers(spans, proposals)
        masks = None
        if any(row.sampling.steering is not None for row in rows):
            mx.async_eval(logits)  # masks are computed while it runs
            masks = _masks(spans, proposals, samplers[0].vocab_size)
        sampled = sample(logits, samplers, positions, masks)
        results = [sampled.tokens, sampled.logprobs, sampled.top, proposals.tokens]
        mx.async_eval(results, arrays(self.batch.caches))
        self._inflight = InFlight(spans, proposals, samplers, sampled)

    def spans(self, rows: Sequence[Row], proposals: Proposals = NO_PROPOSALS) -> list[Span]:
        """What a step gives to the model: each row's last token and what is proposed for it."""
        ordered = self.batch.order(rows) if self._network.own else sorted(rows, key=rank)
        return [Span(row, row.length, 1 + len(proposals.of(row))) for row in ordered]

    def forward(self, spans: Sequence[Span], ids: mx.array) -> mx.array:
        """Logits [T, V] after each token of ``spans``, whose ``ids`` [T] are given; lazy."""
        plan = None
        if self._network.lends:
            plan = DecodePlan(spans, {s.row: s.row.lent() for s in spans})
        with self._adapters.using([s.row.variant.adapter for s in spans for _ in range(s.width)]):
            logits = self._network.forward(ids[:, None], plan, self.batch.caches)
        return logits[:, -1]

    def collect(self) -> list[Outcome]:
        """Waits for the submitted step; appends its tokens to the rows."""
        assert self._inflight is not None
        spans, proposals, samplers, sampled = self._inflight
        self._inflight = None
        mx.eval(sampled.tokens, proposals.tokens)
        chosen: Any = sampled.tokens.tolist()
        proposed: Any = [] if proposals.tokens is None else proposals.tokens.tolist()
        details = describe(sampled)
        outcomes = []
        first = 0
        for row, start, count in spans:
            guesses = [proposed[place] for place in proposals.of(row)]
            found = chosen[first : first + count]
            accepted = _accepted(guesses, found)
            taken = range(first, first + accepted + 1)
            choices = [Choice(chosen[i], *details.get(i, (None, ()))) for i in taken]
            last = first + accepted
            row.sampling.advance(samplers[last], sampled.tokens[last])
            row.tokens.extend(choice.token for choice in choices)
            row.length = start + 1 + accepted
            self.input_tokens += 1 + accepted
            if self.speculation is not None:
                self.speculation.settle(row, start, len(guesses), accepted)
            end = None
            if (steering := row.sampling.steering) is not None:
                # A proposal may be the end, and be followed by a token all the same.
                choices = choices[: steering.advance([c.token for c in choices])]
                end = steering.end
            outcomes.append(Outcome(row, choices, len(guesses), end))
            first += count
        return outcomes


def _ids(spans: Sequence[Span], proposals: Proposals) -> mx.array:
    """The tokens [T] of a step: each row's last one, then its proposals, which may be lazy."""
    ids: list[int] = []
    places: list[int] = []
    sources: list[int] = []
    for row, start, _ in spans:
        ids.append(row.tokens[start])
        proposed = proposals.of(row)
        places += range(len(ids), len(ids) + len(proposed))
        sources += proposed
        ids += [0] * len(proposed)
    known = mx.array(ids, mx.int32)
    if proposals.tokens is not None:
        known[mx.array(places)] = proposals.tokens[mx.array(sources)]
    return known


def _permitted(proposals: Proposals) -> Proposals:
    """``proposals`` less what cannot come where a row is constrained."""
    steered = [row for row in proposals.places if row.sampling.steering is not None]
    if proposals.tokens is None or not steered:
        return proposals
    tokens: Any = proposals.tokens.tolist()
    places = dict(proposals.places)
    for row in steered:
        assert row.sampling.steering is not None
        count = row.sampling.steering.permitted([tokens[place] for place in places[row]])
        if places[row] and not count and row.drafting is not None:
            row.drafting.record(len(places[row]), 0)  # nothing is left from which to learn it
        places[row] = places[row][:count]
    return Proposals(proposals.tokens, places) if any(places.values()) else NO_PROPOSALS


def _masks(spans: Sequence[Span], proposals: Proposals, vocab_size: int) -> Masks | None:
    """What may follow each token of a step."""
    masks: list[Mask | None] = []
    for row, _, count in spans:
        if row.sampling.steering is None:
            masks += [None] * count
        else:
            guesses = [] if count == 1 else _tokens(proposals, row)
            masks += row.sampling.steering.masks(guesses)
    return joined(masks, vocab_size)


def _tokens(proposals: Proposals, row: Row) -> list[int]:
    assert proposals.tokens is not None
    tokens: Any = proposals.tokens.tolist()
    return [tokens[place] for place in proposals.of(row)]


def _samplers(spans: Sequence[Span], proposals: Proposals) -> tuple[list[RowSampling], list[int]]:
    """How each token of a step is followed: the sampling as of then, and the position."""
    samplers: list[RowSampling] = []
    positions: list[int] = []
    for row, start, count in spans:
        tokens = []
        if row.sampling.counts_tokens and proposals.tokens is not None:
            tokens = [proposals.tokens[place] for place in proposals.of(row)]
        samplers += row.sampling.ahead(tokens) if tokens else [row.sampling] * count
        positions += range(start + 1, start + 1 + count)
    return samplers, positions


def _accepted(guesses: Sequence[int], found: Sequence[int]) -> int:
    """How many guesses are what the target itself chose, up to the first that is not."""
    count = 0
    while count < len(guesses) and guesses[count] == found[count]:
        count += 1
    return count
