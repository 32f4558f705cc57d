"""A few of the conversations of `make oracle` for every family, and rows that are preempted."""

from __future__ import annotations

import random

import pytest

from engine.params import SamplingParams
from engine.slabs import GRANULE
from scheduler.events import Finished, Token
from scheduler.request import Request
from scheduler.scheduler import Scheduler

from .conversations import FAMILIES, run, some_adapters
from .models import loaded, model_dir
from .oracle import Oracle, compare
from .recorder import Recorder
from .tenants import MIX

families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_replies_are_those_of_a_cold_run(family):
    report = run(family, 8, seed=3, at_once=4)
    assert not report.different
    assert not report.miscounted
    assert report.replies >= 8
    assert report.cached > 0
    assert report.ties <= 1


@pytest.mark.parametrize("family", ["qwen3", "qwen3_next", "deepseek_v3"])
def test_replies_under_mixed_adapters_are_those_of_mlx_lm_with_each_loaded(family):
    report = run(family, 10, seed=5, at_once=10, adapters=some_adapters(family))
    assert not report.different
    assert not report.miscounted
    assert report.cached > 0
    assert report.ties <= 1


@families
def test_preempted_replies_are_those_of_a_cold_run(family):
    engine = Recorder(loaded(family), "copied" if family == "deepseek_v3" else "lent")
    # Three rows have a place each; all of them grow out of it, and two cannot.
    engine.budget.limit = (
        engine.budget.row_bytes.promised([200] * 3) + 5 * GRANULE * engine.pool.token_bytes + 4096
    )
    scheduler = Scheduler(engine, max_rows=3)
    rng = random.Random(7)
    prompts = [tuple(rng.randrange(3, 500) for _ in range(230)) for _ in range(3)]
    for i, prompt in enumerate(prompts):
        request = Request(str(i), prompt, 60, SamplingParams(temperature=0.0))
        engine.requests[request.id] = request
        scheduler.add(request)
    tokens: dict[str, list[int]] = {str(i): [] for i in range(3)}
    ends = {}
    while scheduler.has_work:
        for event in scheduler.step():
            if isinstance(event, Token):
                tokens[event.request_id].append(event.token)
            elif isinstance(event, Finished):
                ends[event.request_id] = event.reason
        assert engine.used <= engine.budget.limit
    assert scheduler.preemptions > 0
    assert ends == dict.fromkeys(tokens, "length")
    oracle = Oracle(model_dir(family))
    for i, prompt in enumerate(prompts):
        assert compare(tokens[str(i)], oracle.cold(prompt, 60)).kind != "different"


@pytest.mark.parametrize("family", ["qwen3", "qwen3_next", "deepseek_v3"])
def test_tenants_borrow_inside_their_domain_alone(family):
    report = run(family, 12, seed=11, at_once=6, borrowers=MIX)  # the second half forgets nothing
    assert not report.different
    assert not report.miscounted
    assert report.cached > 0
    assert report.ties <= 1
