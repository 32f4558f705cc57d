"""Constrained requests among others, with drafts and too little memory: each as if alone."""

from __future__ import annotations

import itertools
import logging
import random
from dataclasses import replace

import pytest
from llguidance import LLMatcher

from engine import steering
from engine.engine import Engine
from engine.grammar import Grammar
from engine.params import SamplingParams
from engine.steering import Constraint
from engine.thoughts import Thoughts
from engine.tokenizer import Tokenizer
from engine.variant import BASE, NGRAM, Variant
from scheduler.events import Finished, Token
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from tests.drafts import NAME, always_worth_it, blurred
from tests.models import loaded

EOS = 2
SOURCES = (
    'start: %json {"type":"array","items":{"enum":["red","green",7]},"minItems":9,"maxItems":20}',
    'start: %json {"type":"object","properties":{"name":{"type":"string","maxLength":9},'
    '"age":{"type":"integer"}},"required":["name","age"],"additionalProperties":false}',
    "start: /(ab|cd|[0-9]{3}){12,20}/",
    'start: ("0123456789" | "abcdef ")* "."',
    "start: /(?s:.){0,60}/",
)
THOUGHTS = Thoughts((5,), (6, 9), "inside")
Reply = tuple[list[int], str, int]


def constraints(tokenizer: Tokenizer, rng: random.Random) -> Constraint | None:
    grammar = None
    if rng.random() < 0.75:
        grammar = tokenizer.grammars.compile(rng.choice(SOURCES))
    elif rng.random() < 0.5:
        return None
    thinks = grammar is None or rng.random() < 0.4
    budget = rng.choice((0, 3, 17)) if thinks else None
    barred = frozenset({EOS, 5}) if grammar is not None else frozenset()
    return Constraint(grammar, THOUGHTS if thinks else None, budget, barred)


def requests(tokenizer: Tokenizer, seed: int, count: int) -> list[Request]:
    rng = random.Random(seed)
    made = []
    for i in range(count):
        # A tail is full after 256 tokens, and there is not memory for all to grow.
        prompt = [rng.randrange(3, 500) for _ in range(rng.randint(190, 215))]
        prompt += tokenizer.encode("0123456789abcdef " * 2) if rng.random() < 0.5 else [9] * i
        params = SamplingParams(temperature=rng.choice((0.0, 1.0, 3.0)), seed=rng.randrange(99))
        if rng.random() < 0.3:
            params = replace(params, repetition_penalty=1.3, frequency_penalty=0.5, logprobs=1)
        if rng.random() < 0.3:
            params = replace(params, top_k=20, logit_bias=((40, 5.0), (41, -100.0)))
        made.append(
            Request(
                id=f"r{i}",
                prompt=tuple(prompt),
                max_tokens=rng.choice((1, 20, 90)),
                sampling=params,
                stop_token_ids=frozenset({EOS, rng.randrange(3, 500)}),
                variant=Variant(draft=rng.choice((None, NAME, NGRAM, NAME))),
                constraint=constraints(tokenizer, rng),
            )
        )
    return made


def run(scheduler: Scheduler, asked: list[Request], aborted: str = "") -> dict[str, Reply]:
    tokens: dict[str, list[int]] = {request.id: [] for request in asked}
    found: dict[str, Reply] = {}
    for request in asked:
        scheduler.add(request)
    for _ in itertools.count():
        if not scheduler.has_work:
            return found
        for event in scheduler.step():
            if isinstance(event, Token):
                tokens[event.request_id].append(event.token)
                if event.request_id == aborted:
                    scheduler.abort(aborted)
            elif isinstance(event, Finished):
                name = event.request_id
                found[name] = tokens[name], event.reason, event.completion_tokens
    raise AssertionError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(loaded("qwen3").tokenizer)


@pytest.mark.parametrize("seed", range(2))
def test_each_as_if_alone(tokenizer: Tokenizer, seed: int) -> None:
    asked = requests(tokenizer, seed, 12)
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34, draft=blurred("qwen3", 0.05))
    always_worth_it(engine)
    engine.budget.limit = 2000 * engine.token_bytes
    clock = itertools.count()
    crowd = Scheduler(engine, max_rows=8, clock=lambda: next(clock) * 1e-3)
    found = run(crowd, asked, aborted="r3")
    assert not engine.budget.pooled
    assert crowd.preemptions
    for request in asked:
        if request.id == "r3":
            continue
        cold = Engine(loaded("qwen3"), kv_memory=1 << 34)
        alone = run(Scheduler(cold), [replace(request, variant=BASE)])
        assert found[request.id] == alone[request.id], request


def test_the_line_about_a_failed_grammar_has_the_requests_name(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = Grammar.matcher

    def failing(grammar: Grammar) -> LLMatcher:
        matcher = make(grammar)
        matcher.consume_token(1)  # which the grammar does not know
        return matcher

    monkeypatch.setattr(Grammar, "matcher", failing)
    log = logging.Logger("steering")  # of its own: other tests set up logging as servers do
    log.addHandler(caplog.handler)
    monkeypatch.setattr(steering, "log", log)
    constraint = Constraint(tokenizer.grammars.compile('start: "good"'))
    request = Request("r", (5, 6), 20, constraint=constraint, origin="req-of-a-client")
    found = run(Scheduler(Engine(loaded("qwen3"), kv_memory=1 << 34)), [request])
    assert found["r"][1] == "error"
    (line,) = [record for record in caplog.records if "grammar failed" in record.message]
    assert vars(line)["request_id"] == "req-of-a-client"
