"""Seeded random conversations against the oracle: `make oracle`, and in short in the tests.

Each run drives the real scheduler over the real engine: agents with shared and private
prefixes, several turns, forks, aborts, budgets so small that rows are preempted. Every reply is
compared with ``mlx_lm`` generating the same prompt cold and alone.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import sys
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache.keeping import Keeping
from cache.loan import ANYBODY, NOBODY, Borrower
from cache.namespace import Namespace
from cache.tokens import common_length
from engine.decoding import Outcome
from engine.engine import Engine
from engine.loader import Loaded
from engine.network import Attention
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling
from engine.variant import BASE, NGRAM, Variant
from scheduler.events import Finished, Token
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.stats import RequestStats, SchedulerStats
from scheduler.tenant import Tenant

from .adapters import make_adapter
from .drafts import NAME as DRAFT
from .drafts import always_worth_it, blurred
from .models import load_model, loaded, model_dir
from .oracle import Oracle, compare
from .oracle import Reply as ColdReply
from .tenants import MIX, Users, check_forest

BUDGETS = (1536, None, 1024, 4096, 2560, None)  # in tokens, by turns
PATIENCE = 5000  # steps without an event or an input token, after which a run is stuck
PROJECTIONS = {"deepseek_v3": ("self_attn.q_b_proj", "self_attn.o_proj")}
DRAFTED = ("qwen3", "llama")  # whose every layer can take tokens back
FAMILIES = ("qwen3", "llama", "gemma3", "gpt_oss", "qwen3_next", "deepseek_v3")


@dataclass
class Reply:
    """One finished request."""

    prompt: tuple[int, ...]
    max_tokens: int
    tokens: list[int]
    finished: Finished


@dataclass
class Report:
    """What a run showed; ``different`` has the replies that no tie excuses."""

    replies: int = 0
    conversations: int = 0
    aborted: int = 0
    preemptions: int = 0
    evicted: int = 0
    prompt: int = 0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    ties: int = 0
    different: list[str] = field(default_factory=list)
    miscounted: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Sums up."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Recorder(Engine):
    """The engine, with a record of what went through it and a naive model of its cache.

    ``known`` holds every sequence whose KV was computed, ``ends`` those after which layers that
    cannot be cut must have left their state.
    """

    def __init__(
        self,
        model: Loaded,
        attention: Attention,
        keeping: Keeping | None = None,
        draft: Loaded | None = None,
    ) -> None:
        super().__init__(
            model, kv_memory=1 << 40, attention=attention, keeping=keeping, draft=draft
        )
        if draft is not None:
            always_worth_it(self)
        self.drafted = self.accepted = 0
        self.requests: dict[str, Request] = {}
        self.prompt_inputs: Counter[str] = Counter()
        self.inputs = 0
        self.known: set[tuple[Namespace, bytes]] = set()
        self.ends: set[tuple[Namespace, bytes]] = set()
        self.users = Users()
        self.forgets = False  # whether a budget may have made the cache forget
        self.wrong_hits: list[str] = []

    def admit(
        self,
        request_id: str,
        tokens: array[int],
        sampling: RowSampling,
        boundaries: Sequence[int] = (),
        variant: Variant = BASE,
        borrower: Borrower = ANYBODY,
    ) -> Row | None:
        name = self.namespace(variant, borrower.domain)
        least, most = self._expected(tokens[:-1], name)
        row = super().admit(request_id, tokens, sampling, boundaries, variant, borrower)
        if row is None:
            return None
        if not self.forgets and not least <= row.length <= most:
            self.wrong_hits.append(f"{request_id}: {row.length} cached, not {least} to {most}")
        loan = self.users.loan(name, tokens[: row.length], borrower.tenant)
        wrong = sum(row.loan.lenders.values()) != row.length
        if wrong or (not self.forgets and row.loan != loan):
            self.wrong_hits.append(f"{request_id}: {row.loan} of {row.length}, not {loan}")
        self.users.add(name, tokens[: row.length], borrower.tenant)
        return row

    def prefill(self, row: Row, most: int) -> int:
        context = row.length
        count = super().prefill(row, most)
        self._record(row, range(context, row.length))
        state = self._computed(row)
        if row.length in self.requests[row.id].boundaries or not row.remaining:
            self.ends.add(state)
        return count

    def collect(self) -> list[Outcome]:
        outcomes = super().collect()
        for row, choices, proposed, _ in outcomes:
            self._record(row, range(row.length - len(choices), row.length))
            self.drafted += proposed
            self.accepted += len(choices) - 1
        return outcomes

    def release(self, row: Row) -> None:
        super().release(row)
        self.ends.add(self._computed(row))

    def _computed(self, row: Row) -> tuple[Namespace, bytes]:
        tenant, domain = row.borrower
        name, tokens = self.namespace(row.variant, domain), row.tokens[: row.length]
        self.known.add((name, tokens.tobytes()))
        self.users.add(name, tokens, tenant)
        return name, tokens.tobytes()

    def _record(self, row: Row, positions: range) -> None:
        prompt = len(self.requests[row.id].prompt)
        self.inputs += len(positions)
        self.prompt_inputs[row.id] += sum(p < prompt for p in positions)

    def _expected(self, wanted: array[int], name: Namespace) -> tuple[int, int]:
        """The fewest and the most tokens that the cache must give."""
        own = (known for owner, known in self.known if owner == name)
        most = max((common_length(array("i", k), wanted, 0) for k in own), default=0)
        if not self.stateful:
            return most, most
        text = wanted.tobytes()
        ends = (end for owner, end in self.ends if owner == name)
        return max((len(e) // 4 for e in ends if text.startswith(e)), default=0), most


class Tally(SchedulerStats, RequestStats):
    """Sums up the prompt tokens that the scheduler says were computed."""

    def __init__(self) -> None:
        self.prompt_tokens = 0

    def of(self, variant: Variant, tenant: str = NOBODY) -> RequestStats:
        return self

    def computed(self, tokens: int) -> None:
        self.prompt_tokens += tokens


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
            max_tokens=self.rng.choice([1, 8, 24, 24, 150]),
            sampling=SamplingParams(temperature=0.0),
            stop_token_ids=frozenset({self.rng.randrange(3, self.vocab)}),
            boundaries=tuple(b for b in self.boundaries if b < len(self.history)),
            variant=self.variant,
            tenant=self.tenant,
            domain=self.domain,
        )


def converse(
    model: Loaded,
    seed: int,
    conversations: int,
    attention: Attention,
    budget_tokens: int | None = None,
    adapters: Mapping[str, Path] | None = None,
    draft: Loaded | None = None,
    borrowers: Sequence[Borrower] = (ANYBODY,),
) -> tuple[list[tuple[Request, Reply]], Report]:
    """Runs ``conversations`` of them, 1 to 12 at a time; replies in order of completion."""
    rng = random.Random(seed)
    keeping = Keeping(most=rng.choice([0, 48, 1024]))
    engine = Recorder(model, attention, keeping, draft)
    for name, path in (adapters or {}).items():
        engine.adapters.register(name, path)
    if budget_tokens is not None:
        engine.budget.limit = budget_tokens * engine.token_bytes
        engine.forgets = True
    tally = Tally()
    # A clock that moves by steps: how prompts are cut into chunks must not depend on the machine.
    ticks = itertools.count()
    scheduler = Scheduler(
        engine,
        max_rows=rng.choice([2, 5, 12]),
        stall_target=rng.choice([1e-3, 0.1]),
        stats=tally,
        clock=lambda: next(ticks) * 1e-3,
    )
    vocab = model.vocab_size
    systems = [[rng.randrange(3, vocab) for _ in range(rng.randint(20, 250))] for _ in range(3)]
    questions = [[rng.randrange(3, vocab) for _ in range(rng.choice([1, 20, 70]))] for _ in "ab"]
    report = Report(conversations=conversations)
    names = [None, *(adapters or {})]
    drafts = [None] if draft is None else [None, NGRAM, DRAFT, DRAFT]
    agents = [
        Agent(
            f"a{i}",
            rng,
            systems,
            questions,
            vocab,
            Variant(rng.choice(names), rng.choice(drafts)),
            rng.choice(borrowers),
        )
        for i in range(conversations)
    ]
    waiting, running = agents[::-1], {}
    turn: Counter[str] = Counter()
    requests: dict[str, Request] = {}
    tokens: dict[str, list[int]] = {}
    done: list[tuple[Request, Reply]] = []
    concurrent = rng.randint(1, 12)

    def start(agent: Agent) -> None:
        request = agent.request(turn[agent.name])
        if not engine.fits(len(request.prompt) + request.max_tokens):
            running.pop(agent.name, None)
            return
        running[agent.name] = agent
        requests[request.id], tokens[request.id] = request, []
        engine.requests = requests
        scheduler.add(request)
        if rng.random() < 0.08:
            doomed.append(request.id)

    doomed: list[str] = []
    idle, before = 0, 0
    while waiting or scheduler.has_work:
        while waiting and len(running) < concurrent and rng.random() < 0.7:
            start(waiting.pop())
        if doomed and rng.random() < 0.2:
            scheduler.abort(doomed.pop())
        events = scheduler.step()
        idle = idle + 1 if not events and before == engine.inputs else 0
        before = engine.inputs
        assert idle < PATIENCE, "the scheduler has work and does none"
        for event in events:
            if isinstance(event, Token):
                tokens[event.request_id].append(event.token)
                continue
            request = requests[event.request_id]
            reply = Reply(request.prompt, request.max_tokens, tokens[request.id], event)
            done.append((request, reply))
            agent = running.pop(request.id.split(".")[0])
            agent.history += tokens[request.id]
            turn[agent.name] += 1
            if turn[agent.name] < agent.turns:
                start(agent)
        check_forest(engine.forest)
        assert engine.used <= engine.budget.limit, (engine.used, engine.budget.limit)
    _count(scheduler, engine, tally, done, report)
    assert not engine.budget.pooled, "a row was not released"
    nodes = (node for cache in engine.forest for node in cache.tree.walk())
    assert not any(node.loans for node in nodes), "a lease was not released"
    for name in adapters or {}:
        engine.adapters.unregister(name)
    return done, report


def _count(
    scheduler: Scheduler,
    engine: Recorder,
    tally: Tally,
    done: list[tuple[Request, Reply]],
    report: Report,
) -> None:
    """Prompt minus cached is what the model's input has seen of each prompt."""
    report.preemptions = scheduler.preemptions
    report.evicted = engine.forest.evicted_tokens
    report.drafted, report.accepted = engine.drafted, engine.accepted
    report.miscounted += engine.wrong_hits
    for request, reply in done:
        end = reply.finished
        report.replies += 1
        report.prompt += end.prompt_tokens
        report.cached += end.cached_tokens
        report.aborted += end.reason == "abort"
        # A preempted row may have to compute more than its whole prompt.
        seen = min(end.prompt_tokens, engine.prompt_inputs[request.id])
        claimed = end.prompt_tokens - end.cached_tokens
        if claimed < seen or (end.reason != "abort" and claimed != seen):
            report.miscounted.append(f"{request.id}: claimed {claimed}, model saw {seen}")
    computed = sum(engine.prompt_inputs.values())
    if engine.inputs != engine.input_tokens or computed != tally.prompt_tokens:
        report.miscounted.append(
            f"the engine counted {engine.input_tokens} of {engine.inputs} inputs, the scheduler "
            f"{tally.prompt_tokens} of {computed} prompt tokens"
        )


Oracles = Mapping[str | None, Oracle]


def check(oracles: Oracles, done: list[tuple[Request, Reply]], report: Report) -> None:
    """Compares every reply with a cold run."""
    for request, reply in done:
        oracle = oracles[request.variant.adapter]
        ours = list(reply.tokens)
        if reply.finished.reason == "stop":
            ours.append(next(iter(request.stop_token_ids)))
        cold = _cold(oracle, request, reply, ours)
        verdict = compare(ours, cold)
        if verdict.kind == "same":
            continue
        if verdict.kind == "tie" or _rounding(oracle, request, reply, ours):
            report.ties += 1
            continue
        report.different.append(
            f"{request.id} prompt {len(request.prompt)} at {verdict.position}: "
            f"{ours[: verdict.position + 1][-4:]} / {cold.tokens[: verdict.position + 1][-4:]} "
            f"gap {cold.gaps[min(verdict.position, len(cold.gaps) - 1)]:.4f} {reply.finished}"
        )


def _cold(
    oracle: Oracle, request: Request, reply: Reply, ours: list[int], piece: int = 2048
) -> ColdReply:
    cold = oracle.cold(request.prompt, reply.max_tokens, request.stop_token_ids, piece)
    if reply.finished.reason == "abort":
        return cold._replace(tokens=cold.tokens[: len(ours)])
    return cold


def _rounding(oracle: Oracle, request: Request, reply: Reply, ours: list[int]) -> bool:
    """Whether mlx-lm itself, cold and alone, replies so if the prompt comes in other pieces.

    A router that picks experts turns rounding into jumps of the logits, so that their gap does
    not tell where two replies are equally right.
    """
    pieces = {1, 7, max(1, reply.finished.cached_tokens)}
    colds = (_cold(oracle, request, reply, ours, piece) for piece in pieces)
    return any(compare(ours, cold).kind != "different" for cold in colds)


def run(
    family: str,
    conversations: int,
    seed: int,
    attention: Attention | None = None,
    at_once: int = 12,
    adapters: Mapping[str, Path] | None = None,
    draft: Loaded | None = None,
    borrowers: Sequence[Borrower] = (ANYBODY,),
) -> Report:
    """Runs a family's share of conversations, most of them under a budget, some a tiny one.

    With ``adapters`` each conversation has one of them or none; with ``draft`` it, prompt
    lookup or none; and each has one of ``borrowers``.
    """
    path = model_dir(family)
    mix = {None: None, **(adapters or {})}
    oracles = {name: Oracle(path, adapter) for name, adapter in mix.items()}
    mode: Attention = attention or ("copied" if family == "deepseek_v3" else "lent")
    report = Report()
    for group in itertools.count():
        count = min(at_once, conversations - report.conversations)
        if not count:
            return report
        budget = BUDGETS[group % len(BUDGETS)]
        # An engine puts adapters into the model itself, so that it needs one of its own.
        model = load_model(path) if adapters else loaded(family)
        done, part = converse(
            model, seed * 1000 + group, count, mode, budget, adapters, draft, borrowers
        )
        check(oracles, done, part)
        report.add(part)
    raise AssertionError


@functools.cache
def some_adapters(family: str) -> Mapping[str, Path]:
    """Three adapters of the family's model, of two ranks and on other modules."""
    path = model_dir(family)
    folder = path.parent / "adapters"
    projections = PROJECTIONS.get(family, ("self_attn.q_proj", "self_attn.v_proj"))
    return {
        "a": make_adapter(path, folder / "a", seed=1, rank=8, keys=projections),
        "b": make_adapter(path, folder / "b", seed=2, rank=8, keys=projections[-1:]),
        "c": make_adapter(path, folder / "c", seed=3, rank=4, keys=None),
    }


def main() -> None:
    """Prints one line per family and fails where a reply differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=300, help="per family")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--adapters", action="store_true", help="mix adapters into the batches")
    parser.add_argument("--drafts", action="store_true", help="mix drafts into the batches")
    parser.add_argument("--tenants", action="store_true", help="mix tenants and trust domains")
    arguments = parser.parse_args()
    failed = False
    for family in arguments.family or FAMILIES:
        adapters = some_adapters(family) if arguments.adapters else None
        draft = blurred(family, 0.1) if arguments.drafts and family in DRAFTED else None
        r = run(
            family,
            arguments.conversations,
            arguments.seed,
            adapters=adapters,
            draft=draft,
            borrowers=MIX if arguments.tenants else (ANYBODY,),
        )
        print(
            f"{family}: {r.conversations} conversations, {r.replies} replies, {r.aborted} aborted, "
            f"{r.preemptions} preemptions, {r.evicted} tokens evicted, "
            f"{r.cached / max(1, r.prompt):.0%} of prompts cached, {r.accepted} of {r.drafted} "
            f"proposals accepted, {r.ties} ties, "
            f"{len(r.different)} different, {len(r.miscounted)} miscounted",
            flush=True,
        )
        for line in (r.different + r.miscounted)[:20]:
            print("  ", line)
        failed |= bool(r.different or r.miscounted) or r.ties * 100 > r.replies
    sys.exit(failed)


if __name__ == "__main__":
    main()
