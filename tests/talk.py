"""Agents that talk to the real scheduler in several turns, fork what was said, and give up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cache.loan import Borrower
from engine.params import SamplingParams
from engine.variant import Variant
from scheduler.events import Event, Finished, Token
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.tenant import Tenant

from .recorder import Recorder
from .tenants import check_forest

PATIENCE = 5000  # steps without an event or an input token, after which a run is stuck


@dataclass
class Reply:
    """One finished request."""

    prompt: tuple[int, ...]
    max_tokens: int
    tokens: list[int]
    finished: Finished


class Agent:
    """One conversation: a system prompt, then turns that extend what was said."""

    def __init__(
        self,
        name: str,
        rng: random.Random,
        systems: list[list[int]],
        questions: list[list[int]],
        vocab: int,
        variant: Variant,
        borrower: Borrower,
    ) -> None:
        self.name = name
        self.variant = variant
        self.tenant, self.domain = Tenant(borrower.tenant), borrower.domain
        self.questions = questions
        self.rng = rng
        self.vocab = vocab
        self.turns = rng.randint(1, 3)
        shared = rng.random() < 0.75
        self.history = list(rng.choice(systems)) if shared else self.words(10, 250)
        self.boundaries = (len(self.history),)

    def words(self, least: int, most: int) -> list[int]:
        """Random tokens, special ones excluded."""
        return [self.rng.randrange(3, self.vocab) for _ in range(self.rng.randint(least, most))]

    def request(self, turn: int) -> Request:
        """The next turn's request; now and then the history is edited, so that paths fork."""
        if self.rng.random() < 0.15 and len(self.history) > 20:
            del self.history[self.rng.randint(10, len(self.history)) :]
        # Some ask what others ask too, word for word.
        common = self.rng.random() < 0.25
        self.history += self.rng.choice(self.questions) if common else self.words(1, 60)
        return Request(
            id=f"{self.name}.{turn}",
            prompt=tuple(self.history),
            max_tokens=self.rng.choice([1, 8, 24, 24, 24, 100]),
            sampling=SamplingParams(temperature=0.0),
            stop_token_ids=frozenset({self.rng.randrange(3, self.vocab)}),
            boundaries=tuple(b for b in self.boundaries if b < len(self.history)),
            variant=self.variant,
            tenant=self.tenant,
            domain=self.domain,
        )


def some_agents(
    count: int,
    rng: random.Random,
    vocab: int,
    variants: Sequence[Variant],
    borrowers: Sequence[Borrower],
) -> list[Agent]:
    """Agents that have system prompts and questions in common."""
    systems = [[rng.randrange(3, vocab) for _ in range(rng.randint(20, 250))] for _ in range(3)]
    questions = [[rng.randrange(3, vocab) for _ in range(rng.choice([1, 20, 70]))] for _ in "ab"]
    return [
        Agent(f"a{i}", rng, systems, questions, vocab, rng.choice(variants), rng.choice(borrowers))
        for i in range(count)
    ]


class Talk:
    """Conversations on one scheduler, 1 to 12 at a time."""

    def __init__(self, scheduler: Scheduler, engine: Recorder, agents: list[Agent]) -> None:
        self._scheduler = scheduler
        self._engine = engine
        self._waiting = agents[::-1]
        self._running: dict[str, Agent] = {}
        self._turn: Counter[str] = Counter()
        self._tokens: dict[str, list[int]] = {}
        self._doomed: list[str] = []
        self.done: list[tuple[Request, Reply]] = []

    def to_end(self, rng: random.Random) -> None:
        """Steps until all have said everything; the books must be right after each step."""
        concurrent = rng.randint(1, 12)
        idle, before = 0, 0
        while self._waiting or self._scheduler.has_work:
            while self._waiting and len(self._running) < concurrent and rng.random() < 0.7:
                self._start(self._waiting.pop(), rng)
            if self._doomed and rng.random() < 0.2:
                self._scheduler.abort(self._doomed.pop())
            events = self._scheduler.step()
            idle = idle + 1 if not events and before == self._engine.inputs else 0
            before = self._engine.inputs
            assert idle < PATIENCE, "the scheduler has work and does none"
            for event in events:
                self._take(event, rng)
            check_forest(self._engine.forest)
            assert self._engine.used <= self._engine.budget.limit

    def _start(self, agent: Agent, rng: random.Random) -> None:
        request = agent.request(self._turn[agent.name])
        if not self._engine.fits(len(request.prompt) + request.max_tokens):
            self._running.pop(agent.name, None)
            return
        self._running[agent.name] = agent
        self._engine.requests[request.id], self._tokens[request.id] = request, []
        self._scheduler.add(request)
        if rng.random() < 0.08:
            self._doomed.append(request.id)

    def _take(self, event: Event, rng: random.Random) -> None:
        tokens = self._tokens[event.request_id]
        if isinstance(event, Token):
            tokens.append(event.token)
            return
        request = self._engine.requests[event.request_id]
        self.done.append((request, Reply(request.prompt, request.max_tokens, tokens, event)))
        agent = self._running.pop(request.id.split(".")[0])
        agent.history += tokens
        self._turn[agent.name] += 1
        if self._turn[agent.name] < agent.turns:
            self._start(agent, rng)
