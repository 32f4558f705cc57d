"""Drafts for all rows of a batch: proposals by a small model or from the text itself.

A draft model's KV lies beside the target's, in the same slabs and blocks, so that a hit restores
both. Proposals are drawn with the number that the target draws with at the same position, so the
reply is what it would be without them. Owned by the engine thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from .attention import Plan
from .drafting import Candidate, Curve, choose
from .network import Network
from .plans import DecodePlan, PrefillPlan, Span
from .prompt_lookup import lookup
from .rows import Row
from .sampling import choose_tokens

MOST_GAP = 16  # tokens a draft model may be given with its first proposal
MOST_LAG = 64  # tokens after which it is brought up to date though nothing is proposed
CHUNK = 512  # tokens of one pass that does so


class Proposals(NamedTuple):
    """Proposed ``tokens`` [P], lazy, None for none; ``places`` says which are each row's."""

    tokens: mx.array | None
    places: dict[Row, list[int]]

    def of(self, row: Row) -> list[int]:
        """The places of the row's tokens."""
        return self.places.get(row, [])


NO_PROPOSALS = Proposals(None, {})


class Drafter:
    """A draft model; its layers lie behind the target's in slabs and blocks.

    It may know fewer tokens than the target, ``vocab_size`` of them: others it sees as its last
    one, and never proposes.
    """

    def __init__(self, network: Network, digest: str, vocab_size: int) -> None:
        self.network = network
        self.digest = digest
        self._last_token = vocab_size - 1

    def prefill(self, row: Row, stop: int) -> None:
        """Gives the model the row's tokens up to ``stop``, lazily."""
        assert row.drafting is not None and row.tail is not None
        start = row.drafting.length
        if start < stop:
            span = Span(row, start, stop - start)
            ids = mx.array(row.tokens[start:stop].tolist())[None]
            self._forward(ids, PrefillPlan(span, row.lent()))
            row.drafting.length = stop

    def catch_up(self, row: Row) -> None:
        """Brings the model's KV to where the target's is."""
        assert row.drafting is not None and row.tail is not None
        while row.drafting.length < row.length:
            self.prefill(row, min(row.length, row.drafting.length + CHUNK))
            mx.eval(row.tail.slab.keys, row.tail.slab.values)

    def propose(self, counts: dict[Row, int]) -> Proposals:
        """So many tokens for each of the rows, in one pass for all of them per token.

        A row must have places for as many tokens behind its last one.
        """
        drawn: list[mx.array] = []
        places: dict[Row, list[int]] = {row: [] for row in counts}
        rows, number = list(counts), 0
        latest: mx.array | None = None
        for depth in range(max(counts.values(), default=0)):
            kept = [i for i, row in enumerate(rows) if counts[row] > depth]
            if latest is not None and len(kept) < len(rows):
                latest = latest[mx.array(kept)]
            rows = [rows[i] for i in kept]
            logits = self._first(rows) if latest is None else self._next(rows, depth, latest)
            samplers = [row.sampling for row in rows]
            logits = _padded(logits, rows[0].sampling.vocab_size)
            latest = choose_tokens(logits, samplers, [len(row.tokens) + depth for row in rows])
            drawn.append(latest)
            for i, row in enumerate(rows):
                places[row].append(number + i)
            number += len(rows)
        return Proposals(mx.concatenate(drawn), places) if drawn else NO_PROPOSALS

    def _first(self, rows: Sequence[Row]) -> mx.array:
        """Logits [B, V] after each row's last token, from all that the model has not seen."""
        spans, ids = [], array("i")
        for row in rows:
            assert row.drafting is not None
            if row.length - row.drafting.length > MOST_GAP:
                self.catch_up(row)
            start = row.drafting.length
            spans.append(Span(row, start, row.length + 1 - start))
            ids += row.tokens[start : row.length + 1]
        logits = self._decode(spans, mx.array(ids.tolist()))
        if len(ids) == len(rows):
            return logits
        last, ends = -1, []
        for span in spans:
            last += span.width
            ends.append(last)
        return logits[mx.array(ends)]

    def _next(self, rows: Sequence[Row], depth: int, latest: mx.array) -> mx.array:
        spans = [Span(row, row.length + depth) for row in rows]
        return self._decode(spans, latest)

    def _decode(self, spans: Sequence[Span], ids: mx.array) -> mx.array:
        lent = {s.row: s.row.lent() for s in spans}
        return self._forward(ids[:, None], DecodePlan(spans, lent))[:, -1]

    def _forward(self, ids: mx.array, plan: Plan) -> mx.array:
        # MLX does not check bounds.
        return self.network.forward(mx.minimum(ids, self._last_token), plan, {})


def _padded(logits: mx.array, vocab_size: int) -> mx.array:
    """``logits`` [B, V] with those of tokens that the draft model lacks."""
    lacking = vocab_size - logits.shape[1]
    if lacking <= 0:
        return logits
    return mx.pad(logits, [(0, 0), (0, lacking)], constant_values=-mx.inf)


class Speculation:
    """Proposes for the rows of each step, as far as it pays.

    ``most`` bounds the tokens proposed for a row at once. ``verify`` and ``propose`` are the
    costs of a pass of the target and of the draft model, as measured on this machine.
    """

    def __init__(
        self, most: int, verify: Curve, drafter: Drafter | None, propose: Curve | None
    ) -> None:
        self.most = most
        self.drafter = drafter
        self._verify = verify
        self._propose = propose

    def proposals(self, rows: Sequence[Row], left: Sequence[int]) -> Proposals:
        """Tokens to verify beside the next one of each of ``rows``.

        ``left`` is how many each of them may still generate.
        """
        found: dict[Row, list[int]] = {}
        drafted: list[Row] = []
        candidates: list[Candidate] = []
        for row, rest in zip(rows, left, strict=True):
            if row.drafting is None or (most := self._most(row, rest)) <= 0:
                continue
            by_model = row.drafts_by_model
            if not by_model:
                found[row] = lookup(row.tokens, most)
                most = len(found[row])
            drafted.append(row)
            candidates.append(Candidate(row.drafting, most, by_model))
        if not candidates:
            return NO_PROPOSALS
        attended = sum(row.length for row in rows) / len(rows)
        counts = choose(self._verify, self._propose, len(rows), attended, candidates)
        chosen = {row: n for row, n in zip(drafted, counts, strict=True) if n}
        return self._proposed(chosen, found)

    def settle(self, row: Row, start: int, proposed: int, accepted: int) -> None:
        """Learns what became of a row's proposals in the step from position ``start`` on."""
        if row.drafting is None:
            return
        row.drafting.record(proposed, accepted)
        if row.drafts_by_model and self.drafter is not None:
            if proposed:
                # The last proposal was never given to the draft model itself.
                row.drafting.length = start + 1 + min(accepted, proposed - 1)
            elif row.length - row.drafting.length > MOST_LAG:
                self.drafter.catch_up(row)

    def _most(self, row: Row, left: int) -> int:
        assert row.tail is not None
        return min(self.most, left - 1, row.tail.end - row.length - 1)

    def _proposed(self, counts: dict[Row, int], found: dict[Row, list[int]]) -> Proposals:
        """Draws from the draft model, and puts what was looked up behind."""
        drawn = NO_PROPOSALS
        if self.drafter is not None:
            by_model = {row: n for row, n in counts.items() if row not in found}
            drawn = self.drafter.propose(by_model)
        known: list[int] = []
        places = dict(drawn.places)
        parts = [] if drawn.tokens is None else [drawn.tokens]
        first = sum(part.size for part in parts)
        for row, n in counts.items():
            if row in found:
                at = first + len(known)
                places[row] = list(range(at, at + n))
                known += found[row][:n]
        if not known:
            return drawn
        return Proposals(mx.concatenate([*parts, mx.array(known, mx.int32)]), places)
