"""Drafts change how many steps a reply takes, and nothing else."""

from __future__ import annotations

import json
import random
from array import array
from dataclasses import replace

import pytest

from engine.draft_model import load_draft, why_not
from engine.drafting import MOST_PROBE, PROBE, Candidate, Curve, Drafting, choose
from engine.engine import Engine
from engine.loader import LoadError
from engine.params import SamplingParams
from engine.prompt_lookup import lookup
from engine.rows import Row
from engine.sampling import RowSampling
from engine.variant import BASE, NGRAM, Variant
from tests.conversations import DRAFTED, FAMILIES, run, some_adapters
from tests.drafts import NAME, always_worth_it, blurred
from tests.models import load_model, loaded, make, model_dir
from tests.oracle import Oracle, compare

GREEDY = SamplingParams(temperature=0.0)
DRAFT = Variant(draft=NAME)
NEW = 40


def words(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 500) for _ in range(n)]


def engine_with(noise: float, most: int = 4) -> Engine:
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34, draft=blurred("qwen3", noise))
    always_worth_it(engine, most)
    return engine


def start(engine: Engine, tokens: list[int], variant: Variant, params: SamplingParams) -> Row:
    prompt = array("i", tokens)
    row = engine.admit(
        f"{variant}", prompt, RowSampling(params, prompt, engine.vocab_size), (), variant
    )
    assert row is not None
    while row.remaining:
        engine.prefill(row, 512)
    return row


class Drafted:
    """What a batch of rows generated, and how."""

    def __init__(self, engine: Engine, rows: list[Row], count: int = NEW) -> None:
        self.details = {row: [] for row in rows}
        self.steps = self.proposed = self.accepted = 0
        prompts = {row: len(row.tokens) for row in rows}
        left = dict.fromkeys(rows, count)
        while running := [row for row in rows if left[row] > 0]:
            assert all(engine.make_room(row) for row in running)
            engine.submit(running, [left[row] for row in running])
            self.steps += 1
            for row, choices, proposed, _ in engine.collect():
                assert len(choices) <= left[row]
                left[row] -= len(choices)
                self.details[row] += choices
                self.proposed += proposed
                self.accepted += len(choices) - 1
        self.tokens = {row: row.tokens[prompts[row] :].tolist() for row in rows}


@pytest.mark.parametrize("length", [5, 300])
def test_a_model_that_drafts_for_itself_is_nearly_always_right(length):
    engine = engine_with(0.0)
    row = start(engine, words(1, length), DRAFT, GREEDY)
    done = Drafted(engine, [row])
    assert done.proposed >= 20
    assert done.accepted >= 0.9 * done.proposed
    assert done.steps < NEW / 3
    cold = Oracle(model_dir("qwen3")).cold(tuple(words(1, length)), NEW)
    assert compare(done.tokens[row], cold).kind == "same"


SAMPLED = SamplingParams(temperature=1.0, seed=4)


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SAMPLED,
        replace(SAMPLED, top_p=0.8, top_k=20, min_p=0.01),
        replace(SAMPLED, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
        replace(GREEDY, repetition_penalty=1.5, frequency_penalty=1.0),
        replace(SAMPLED, logit_bias=((7, 4.0), (9, 4.0))),
        replace(SAMPLED, temperature=0.5, logprobs=3),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_replies_are_what_they_are_without_drafts(params, noise):
    engine = engine_with(noise)
    prompts = [words(i, 20 + 90 * i) for i in range(3)]
    # A text that repeats itself, so that prompt lookup finds something.
    prompts.append(words(8, 12) * 5)
    plain = [start(engine, p, BASE, params) for p in prompts]
    expected = Drafted(engine, plain)
    assert not expected.proposed
    variants = [DRAFT, DRAFT, Variant(draft=NGRAM), Variant(draft=NGRAM)]
    rows = [start(engine, p, v, params) for p, v in zip(prompts, variants, strict=True)]
    bystander = start(engine, words(9, 60), BASE, params)
    done = Drafted(engine, [*rows, bystander])
    assert done.proposed
    if noise:
        assert 0 < done.accepted < done.proposed
    for ours, theirs in zip(rows, plain, strict=True):
        assert done.tokens[ours] == expected.tokens[theirs]
        for a, b in zip(done.details[ours], expected.details[theirs], strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
            assert [t for t, _ in a.top] == [t for t, _ in b.top]


def test_a_hit_restores_the_drafts_kv_with_the_targets():
    engine = engine_with(0.0)
    tokens = words(2, 200)
    first = start(engine, tokens, DRAFT, GREEDY)
    Drafted(engine, [first])
    said = first.tokens.tolist()
    engine.release(first)
    again = start(engine, [*said, *words(3, 4)], DRAFT, GREEDY)
    assert again.drafting is not None
    assert engine.lookup(array("i", said), DRAFT).length == len(said) - 1
    assert again.drafting.length == again.length == len(said) + 3
    assert engine.lookup(array("i", said), BASE).length == 0, "other blocks than without a draft"
    done = Drafted(engine, [again])
    assert done.accepted >= 0.9 * done.proposed > 0
    cold = Oracle(model_dir("qwen3")).cold((*said, *words(3, 4)), NEW)
    assert compare(done.tokens[again], cold).kind != "different"


def test_rows_of_one_prefix_share_the_drafts_kv_as_well():
    engine = engine_with(0.05)
    shared = words(4, 700)
    first = start(engine, [*shared, 5, 6], DRAFT, GREEDY)
    used = engine.used
    rows = [start(engine, [*shared, 10 + i, 7], DRAFT, GREEDY) for i in range(4)]
    assert all(row.anchor >= len(shared) for row in rows)
    draft_bytes = sum(s.token_bytes for s in engine.drafter.network.shapes)
    per_row = 2 * 256 * (engine.token_bytes + draft_bytes)
    assert engine.used - used <= len(rows) * per_row
    done = Drafted(engine, [first, *rows])
    oracle = Oracle(model_dir("qwen3"))
    for row in rows:
        prompt = row.tokens[:-NEW].tolist()
        assert compare(done.tokens[row], oracle.cold(tuple(prompt), NEW)).kind != "different"


def test_a_row_that_stops_early_leaves_no_trace_of_what_was_too_much():
    engine = engine_with(0.0)
    row = start(engine, words(5, 50), DRAFT, GREEDY)
    Drafted(engine, [row], 8)
    row.cut(54)
    assert len(row.tokens) == 54
    assert row.length == 53
    engine.release(row)
    assert engine.lookup(array("i", [*row.tokens, 1]), DRAFT).length == 53
    assert not engine.budget.pooled


@pytest.mark.parametrize("params", [GREEDY, replace(SAMPLED, presence_penalty=0.5)])
def test_a_draft_may_know_fewer_tokens_than_the_target(tmp_path, params):
    narrow = load_model(make("qwen3", tmp_path / "narrow", vocab_size=400))
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34, draft=narrow)
    always_worth_it(engine)
    prompt = [*words(7, 30), 499, 410]
    plain, drafted = start(engine, prompt, BASE, params), start(engine, prompt, DRAFT, params)
    done = Drafted(engine, [plain, drafted])
    assert done.proposed
    assert done.tokens[plain] == done.tokens[drafted]


@pytest.mark.parametrize("family", DRAFTED)
def test_conversations_with_mixed_drafts_and_adapters_are_those_of_cold_runs(family):
    draft = blurred(family, 0.05)
    report = run(family, 10, seed=6, at_once=10, adapters=some_adapters(family), draft=draft)
    assert not report.different
    assert not report.miscounted
    assert report.cached > 0
    assert 0 < report.accepted < report.drafted
    assert report.ties <= 1


# how many


FLAT = Curve((1, 64), (1.0, 1.0), 0.0)
LINEAR = Curve((1, 64), (1.0, 64.0), 0.0)
CHEAP = Curve((1, 64), (0.01, 0.02), 0.0)


def candidates(*acceptances: float, most: int = 4) -> list[Candidate]:
    return [Candidate(Drafting(NAME, acceptance=a), most, True) for a in acceptances]


def test_nothing_is_proposed_where_a_pass_costs_by_the_token():
    assert choose(LINEAR, CHEAP, 4, 0, candidates(0.9, 0.9, 0.9, 0.9)) == [0] * 4


def test_much_is_proposed_where_it_costs_nothing():
    assert choose(FLAT, CHEAP, 2, 0, candidates(1.0, 0.9)) == [4, 4]


def test_each_row_has_a_length_of_its_own():
    good, bad, short = choose(FLAT, CHEAP, 3, 0, [*candidates(0.95, 0.005), *candidates(1, most=1)])
    assert good == 4
    assert bad == 0
    assert short == 1


def test_a_dear_draft_is_not_asked():
    dear = Curve((1, 64), (0.9, 0.9), 0.0)
    assert choose(FLAT, dear, 1, 0, candidates(0.5)) == [0]
    free = [Candidate(Drafting(NGRAM, acceptance=0.5), 4, False)]
    assert choose(FLAT, dear, 1, 0, free)[0] > 0


def test_costs_grow_with_what_is_attended():
    by_context = Curve((1, 64), (1.0, 1.0), 0.01)
    assert choose(by_context, CHEAP, 1, 0, candidates(0.8))[0] > 0
    assert choose(by_context, CHEAP, 1, 10_000, candidates(0.8)) == [0]


def test_acceptance_follows_what_happens_and_is_tried_again_ever_more_rarely():
    drafting = Drafting(NAME)
    for _ in range(20):
        drafting.record(4, 0)
    assert drafting.acceptance < 0.1
    gaps = []
    for _ in range(8):
        steps = 0
        while drafting.hope < 0.5:
            drafting.record(0, 0)
            steps += 1
        gaps.append(steps)
        drafting.record(1, 0)
    assert gaps == sorted(gaps)
    assert gaps[0] == PROBE
    assert gaps[-1] == MOST_PROBE
    for _ in range(20):
        drafting.record(4, 4)
    assert drafting.acceptance > 0.9


# prompt lookup


def naive(tokens: list[int], most: int) -> list[int]:
    for n in (4, 3, 2):
        for i in range(len(tokens) - n - 1, -1, -1):
            if len(tokens) > n and tokens[i : i + n] == tokens[-n:]:
                found = list(tokens)
                for k in range(most):
                    found.append(found[i + n + k])
                return found[len(tokens) :]
    return []


def test_lookup_continues_as_the_text_did_before():
    rng = random.Random(1)
    found = 0
    for _ in range(300):
        tokens = [rng.choice((0, 1, 256, 65536)) for _ in range(rng.randint(1, 40))]
        most = rng.randint(1, 9)
        assert lookup(array("i", tokens), most) == naive(tokens, most)
        found += bool(naive(tokens, most))
    assert found > 100
    assert lookup(array("i", [1, 2, 3, 1, 2]), 0) == []


# what does not fit


def test_a_draft_with_another_tokenizer_is_refused(tmp_path):
    other = make("llama", tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, other_one = (next(w for w, n in vocabulary.items() if n == i) for i in (300, 301))
    vocabulary[one], vocabulary[other_one] = 301, 300
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(LoadError, match="token 300 is"):
        load_draft(str(other), loaded("qwen3"), dtype=None, trust_remote_code=False, progress=print)


@pytest.mark.parametrize("family", ["gemma3", "gpt_oss", "qwen3_next"])
def test_a_draft_that_keeps_other_state_is_refused(family):
    path = str(model_dir(family))
    with pytest.raises(LoadError, match="cannot be a draft"):
        load_draft(path, loaded("qwen3"), dtype=None, trust_remote_code=False, progress=print)


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_are_off_where_tokens_cannot_be_taken_back(family):
    attention = "copied" if family == "deepseek_v3" else "lent"
    off = why_not(attention, Engine(loaded(family), kv_memory=1 << 30).stateful)
    assert (off is None) == (family in DRAFTED)
