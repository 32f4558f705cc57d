"""Seeded random conversations against the oracle: `make oracle`, and in short in the tests.

Each run drives the real scheduler over the real engine: agents with shared and private
prefixes, several turns, forks, aborts, budgets so small that rows are preempted. Every reply is
compared with ``mlx_lm`` generating the same prompt cold and alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass, field

from cache.prefix_cache import Keeping
from engine.engine import Attention, Engine
from engine.loader import Loaded, load
from engine.params import SamplingParams
from scheduler.events import Finished, Token
from scheduler.request import Request
from scheduler.scheduler import Scheduler

from .models import model_dir
from .oracle import Oracle, compare

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
    ties: int = 0
    different: list[str] = field(default_factory=list)
    miscounted: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Sums up."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Agent:
    """One conversation: a system prompt, then turns that extend what was said."""

    def __init__(self, name: str, rng: random.Random, systems: list[list[int]], vocab: int):
        self.name = name
        self.rng = rng
        self.vocab = vocab
        self.turns = rng.randint(1, 3)
        shared = rng.random() < 0.75
        self.history = list(rng.choice(systems)) if shared else self.words(10, 120)
        self.boundaries = (len(self.history),)

    def words(self, least: int, most: int) -> list[int]:
        """Random tokens, special ones excluded."""
        return [self.rng.randrange(3, self.vocab) for _ in range(self.rng.randint(least, most))]

    def request(self, turn: int) -> Request:
        """The next turn's request; now and then the history is edited, so that paths fork."""
        if self.rng.random() < 0.15 and len(self.history) > 20:
            del self.history[self.rng.randint(10, len(self.history)) :]
        self.history += self.words(1, 60)
        return Request(
            id=f"{self.name}.{turn}",
            prompt=tuple(self.history),
            max_tokens=self.rng.choice([1, 8, 24, 24, 150]),
            sampling=SamplingParams(temperature=0.0),
            stop_token_ids=frozenset({self.rng.randrange(3, self.vocab)}),
            boundaries=tuple(b for b in self.boundaries if b < len(self.history)),
        )


def converse(
    loaded: Loaded,
    seed: int,
    conversations: int,
    attention: Attention,
    budget_tokens: int | None = None,
) -> tuple[list[tuple[Request, Reply]], Report]:
    """Runs ``conversations`` of them, 1 to 12 at a time; replies in order of completion."""
    rng = random.Random(seed)
    keeping = Keeping(most=rng.choice([0, 48, 1024]))
    engine = Engine(loaded, kv_memory=1 << 40, attention=attention, keeping=keeping)
    if budget_tokens is not None:
        engine.kv_memory = budget_tokens * engine.token_bytes
    scheduler = Scheduler(engine, max_rows=rng.choice([2, 5, 12]), stall_target=1e-3)
    vocab = loaded.vocab_size
    systems = [[rng.randrange(3, vocab) for _ in range(rng.randint(20, 250))] for _ in range(3)]
    report = Report(conversations=conversations)
    agents = [Agent(f"a{i}", rng, systems, vocab) for i in range(conversations)]
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
        scheduler.add(request)
        if rng.random() < 0.08:
            doomed.append(request.id)

    doomed: list[str] = []
    while waiting or scheduler.has_work:
        while waiting and len(running) < concurrent and rng.random() < 0.7:
            start(waiting.pop())
        if doomed and rng.random() < 0.2:
            scheduler.abort(doomed.pop())
        for event in scheduler.step():
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
        engine.cache.tree.check()
        assert engine.used <= engine.kv_memory, (engine.used, engine.kv_memory)
    _count(scheduler, engine, done, report)
    assert not engine.pool.slabs, "a row was not released"
    assert not any(n.loans for n in engine.cache.tree.walk()), "a lease was not released"
    return done, report


def _count(
    scheduler: Scheduler, engine: Engine, done: list[tuple[Request, Reply]], report: Report
) -> None:
    """Prompt minus cached, plus every token fed back, is what the model's input has seen."""
    report.preemptions = scheduler.preemptions
    report.evicted = engine.cache.evicted_tokens
    expected = 0
    for _, reply in done:
        end = reply.finished
        report.replies += 1
        report.prompt += end.prompt_tokens
        report.cached += end.cached_tokens
        report.aborted += end.reason == "abort"
        expected += end.prompt_tokens - end.cached_tokens + max(0, end.completion_tokens - 1)
    if not report.preemptions and not report.aborted and expected != engine.input_tokens:
        report.miscounted.append(f"expected {expected}, model saw {engine.input_tokens}")


def check(oracle: Oracle, done: list[tuple[Request, Reply]], report: Report) -> None:
    """Compares every reply with a cold run."""
    for request, reply in done:
        cold = oracle.cold(request.prompt, reply.max_tokens, request.stop_token_ids)
        ours, theirs = list(reply.tokens), list(cold.tokens)
        if reply.finished.reason == "stop":
            ours.append(next(iter(request.stop_token_ids)))
        if reply.finished.reason not in ("stop", "length") or len(ours) < len(theirs):
            theirs = theirs[: len(ours)]  # aborted, or ended for want of memory
        verdict = compare(ours, cold._replace(tokens=theirs))
        if verdict.kind == "tie":
            report.ties += 1
        elif verdict.kind == "different":
            report.different.append(
                f"{request.id} prompt {len(request.prompt)} at {verdict.position}: "
                f"{ours[: verdict.position + 1][-4:]} / {theirs[: verdict.position + 1][-4:]} "
                f"gap {cold.gaps[min(verdict.position, len(cold.gaps) - 1)]:.4f} {reply.finished}"
            )


def run(family: str, conversations: int, seed: int, attention: Attention | None = None) -> Report:
    """Runs a family's share of conversations, a fifth of them under a tiny budget."""
    path = model_dir(family)
    loaded = load(
        str(path), dtype=None, trust_remote_code=False, max_context=None, progress=lambda _: None
    )
    oracle = Oracle(path)
    mode: Attention = attention or ("copied" if family == "deepseek_v3" else "lent")
    report = Report()
    group = 0
    while report.conversations < conversations:
        group += 1
        count = min(12, conversations - report.conversations)
        budget = [None, 4096, 2560, 1536, 1024][group % 5]
        done, part = converse(loaded, seed * 1000 + group, count, mode, budget)
        check(oracle, done, part)
        report.add(part)
    return report


def main() -> None:
    """Prints one line per family and fails where a reply differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=300, help="per family")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    arguments = parser.parse_args()
    failed = False
    for family in arguments.family or FAMILIES:
        r = run(family, arguments.conversations, arguments.seed)
        print(
            f"{family}: {r.conversations} conversations, {r.replies} replies, {r.aborted} aborted, "
            f"{r.preemptions} preemptions, {r.evicted} tokens evicted, "
            f"{r.cached / max(1, r.prompt):.0%} of prompts cached, {r.ties} ties, "
            f"{len(r.different)} different, {len(r.miscounted)} miscounted",
            flush=True,
        )
        for line in (r.different + r.miscounted)[:20]:
            print("  ", line)
        failed |= bool(r.different or r.miscounted) or r.ties * 100 > r.replies
    sys.exit(failed)


if __name__ == "__main__":
    main()
