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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache.keeping import Keeping
from cache.loan import ANYBODY, Borrower
from engine.loader import Loaded
from engine.network import Attention
from engine.variant import NGRAM, Variant
from scheduler.request import Request
from scheduler.scheduler import Scheduler

from .adapters import make_adapter
from .drafts import NAME as DRAFT
from .drafts import blurred
from .models import load_model, loaded, model_dir
from .oracle import Oracle, compare
from .oracle import Reply as ColdReply
from .recorder import Recorder, Tally
from .talk import Reply, Talk, some_agents
from .tenants import MIX

BUDGETS = (1536, None, 1024, 4096, 2560, None)  # in tokens, by turns
PROJECTIONS = {"deepseek_v3": ("self_attn.q_b_proj", "self_attn.o_proj")}
DRAFTED = ("qwen3", "llama")  # whose every layer can take tokens back
FAMILIES = ("qwen3", "llama", "gemma3", "gpt_oss", "qwen3_next", "deepseek_v3")


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
    """Runs ``conversations`` of them; replies in order of completion."""
    rng = random.Random(seed)
    engine = Recorder(model, attention, Keeping(most=rng.choice([0, 48, 1024])), draft)
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
    drafts = [None] if draft is None else [None, NGRAM, DRAFT, DRAFT]
    variants = [Variant(a, d) for a in (None, *(adapters or {})) for d in drafts]
    agents = some_agents(conversations, rng, model.vocab_size, variants, borrowers)
    talk = Talk(scheduler, engine, agents)
    talk.to_end(rng)
    report = Report(conversations=conversations)
    _count(scheduler, engine, tally, talk.done, report)
    assert not engine.budget.pooled, "a row was not released"
    nodes = (node for cache in engine.forest for node in cache.tree.walk())
    assert not any(node.loans for node in nodes), "a lease was not released"
    for name in adapters or {}:
        engine.adapters.unregister(name)
    return talk.done, report


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
