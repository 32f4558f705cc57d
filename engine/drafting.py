"""How long the next proposal of each row should be.

A proposal is worth its cost where the tokens that it is expected to save take longer than it
does: for a row whose proposals are accepted with probability p, k of them give on average
1 + p + ... + p^k tokens (Leviathan et al., 2023). Owned by the engine thread.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

FIRST_GUESS = 0.7  # acceptance of a row of which nothing is known
MEMORY = 0.9  # weight of a row's past against its newest step
PROBE, MOST_PROBE = 16, 256  # steps without a proposal after which one is tried again
HOPE = 0.9  # acceptance that such a try assumes
WORTH = 1.03  # expected gain from which on drafting is worth its bookkeeping


@dataclass(eq=False, slots=True)
class Drafting:
    """The draft of one row.

    ``length`` tokens have been given to the draft model. ``acceptance`` is the chance that a
    proposal is accepted whose predecessors were.
    """

    name: str
    length: int = 0
    acceptance: float = FIRST_GUESS
    weight: float = 1.0
    idle: int = 0  # steps since the last proposal
    patience: int = PROBE

    def record(self, proposed: int, accepted: int) -> None:
        """Learns from a step in which ``accepted`` of ``proposed`` tokens were right."""
        if not proposed:
            self.idle += 1
            return
        if self.idle >= self.patience:
            self.patience = PROBE if accepted else min(2 * self.patience, MOST_PROBE)
        self.idle = 0
        tried = accepted + (accepted < proposed)  # those behind the first wrong one say nothing
        past = self.weight * MEMORY**tried
        self.weight = past + tried
        self.acceptance = (past * self.acceptance + accepted) / self.weight

    @property
    def hope(self) -> float:
        """The acceptance to reckon with; high where it is time to find out again."""
        return HOPE if self.idle >= self.patience else self.acceptance


class Curve(NamedTuple):
    """Seconds of a pass by its tokens, at ascending points.

    ``context`` is what each token of the pass costs more for each token that it attends.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    context: float

    def at(self, tokens: int, attended: float = 0.0) -> float:
        """Seconds of a pass of so many tokens, each of which attends ``attended`` others."""
        far = self.context * tokens * attended
        i = bisect_left(self.tokens, tokens)
        if i == 0:
            return self.seconds[0] + far
        if i == len(self.tokens):
            return self.seconds[-1] * tokens / self.tokens[-1] + far
        low, high = self.tokens[i - 1], self.tokens[i]
        share = (tokens - low) / (high - low)
        return self.seconds[i - 1] + share * (self.seconds[i] - self.seconds[i - 1]) + far


class Candidate(NamedTuple):
    """A row for which something may be proposed: at most ``most`` tokens, by a model or not."""

    drafting: Drafting
    most: int
    by_model: bool


def choose(
    verify: Curve,
    propose: Curve | None,
    rows: int,
    attended: float,
    candidates: Sequence[Candidate],
) -> list[int]:
    """How many tokens to propose for each of ``candidates``, in a step of so many ``rows``.

    ``attended`` is the mean length of what the rows attend to.
    """
    alone = verify.at(rows, attended)
    counts = [_worthwhile(c, verify, propose, rows, attended) for c in candidates]
    best, best_rate = [0] * len(candidates), rows / alone * WORTH
    for cap in range(1, max(counts, default=0) + 1):
        capped = [min(count, cap) for count in counts]
        tokens = rows + sum(capped)
        seconds = verify.at(tokens, attended)
        if propose is not None:
            depths = [c for c, of in zip(capped, candidates, strict=True) if of.by_model]
            seconds += sum(
                propose.at(active, attended)
                for depth in range(cap)
                if (active := sum(c > depth for c in depths))
            )
        gained = sum(_expected(of, c) for of, c in zip(candidates, capped, strict=True))
        rate = (rows + gained) / seconds
        if rate > best_rate:
            best, best_rate = capped, rate
    return best


def _worthwhile(
    candidate: Candidate, verify: Curve, propose: Curve | None, rows: int, attended: float
) -> int:
    """How far proposals for a row save more than they cost beside those of the others."""
    hope = candidate.drafting.hope
    more = (verify.at(2 * rows, attended) - verify.at(rows, attended)) / rows
    if candidate.by_model and propose is not None:
        more += propose.at(rows, attended) / rows
    least = more / (verify.at(rows, attended) / rows)
    if hope <= 0.0 or least >= hope:
        return 0
    if hope >= 1.0 or least <= 0.0:
        return candidate.most
    return min(candidate.most, int(math.log(least) / math.log(hope)))


def _expected(candidate: Candidate, count: int) -> float:
    """Mean number of accepted tokens of ``count`` proposed ones."""
    hope = candidate.drafting.hope
    if hope >= 1.0:
        return float(count)
    return hope * (1.0 - hope**count) / (1.0 - hope)
