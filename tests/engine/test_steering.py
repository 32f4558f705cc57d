"""Grammars and thinking budgets, row by row inside a batch, with drafts and without."""

from __future__ import annotations

import copy
import json
import re
import time
from array import array
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken

from engine import grammar
from engine.engine import Engine
from engine.grammar import Grammar, GrammarError, Grammars
from engine.grammar_trial import MOST_WALL, TOO_COSTLY, Trials
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling
from engine.steering import Constraint, Steering, joined
from engine.thoughts import Thinking, Thoughts
from engine.tokenizer import Tokenizer
from engine.variant import BASE, NGRAM, Variant
from tests.drafts import NAME, always_worth_it, blurred
from tests.models import loaded

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=1.0, seed=4)
COLOURS = r"(red|green|blue) (one|two|three)( and (red|green) [0-9]{4}){6}"
EOS = 2
MOST = 100


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(loaded("qwen3").tokenizer)


@pytest.fixture
def engine() -> Engine:
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34, draft=blurred("qwen3", 0.05))
    always_worth_it(engine)
    return engine


def lark(tokenizer: Tokenizer, source: str) -> Grammar:
    return tokenizer.grammars.compile(source)


def start(
    engine: Engine,
    prompt: list[int],
    constraint: Constraint | None,
    params: SamplingParams = GREEDY,
    variant: Variant = BASE,
) -> Row:
    steering = None if constraint is None else Steering(constraint, engine.vocab_size)
    return admit(engine, array("i", prompt), prompt, params, steering, variant)


def admit(
    engine: Engine,
    tokens: array[int],
    prompt: list[int],
    params: SamplingParams,
    steering: Steering | None,
    variant: Variant = BASE,
) -> Row:
    sampling = RowSampling(params, prompt, engine.vocab_size, steering)
    row = engine.admit(f"{id(steering)} {variant}", tokens, sampling, (), variant)
    assert row is not None
    while row.remaining:
        engine.prefill(row, 512)
    return row


class Run:
    """What rows generated until each came to its end or had ``most`` tokens."""

    def __init__(self, engine: Engine, rows: list[Row], most: int = 150) -> None:
        self.tokens: dict[Row, list[int]] = {row: [] for row in rows}
        self.ends: dict[Row, str] = {}
        self.proposed = self.accepted = 0
        running = list(rows)
        while running:
            assert all(engine.make_room(row) for row in running)
            engine.submit(running, [most - len(self.tokens[row]) for row in running])
            for row, choices, proposed, end in engine.collect():
                self.tokens[row] += [choice.token for choice in choices]
                self.proposed += proposed
                self.accepted += len(choices) - 1
                if end is not None:
                    self.ends[row] = end
            done = lambda row: row in self.ends or len(self.tokens[row]) >= most
            running = [row for row in running if not done(row)]


def text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return "".join(tokenizer.token_text(token) for token in tokens if token != EOS)


PARAMS = [
    GREEDY,
    SAMPLED,
    replace(SAMPLED, top_k=3, top_p=0.9, min_p=0.01),
    replace(SAMPLED, repetition_penalty=1.4, presence_penalty=1.0, frequency_penalty=1.0),
    replace(GREEDY, logit_bias=((9, 100.0), (11, -100.0)), logprobs=2),
]


@pytest.mark.parametrize("params", PARAMS)
def test_a_batch_of_all_kinds(engine, tokenizer, params) -> None:
    """Each row follows its own grammar, others go on as if alone, and drafts change nothing."""
    constraint = Constraint(lark(tokenizer, f"start: /{COLOURS}/"))
    other = Constraint(lark(tokenizer, 'start: %json {"type":"integer"}'))
    prompts = [[7, 8, 9], [20, 21] * 20, [7, 8, 9], [30] * 9]
    kinds = [constraint, constraint, None, other]
    alone = Run(engine, [start(engine, prompts[2], None, params)], MOST)
    plain = [start(engine, p, c, params) for p, c in zip(prompts, kinds, strict=True)]
    expected = Run(engine, plain, MOST)
    assert expected.tokens[plain[2]] == next(iter(alone.tokens.values()))
    for row in plain[:2]:
        said = text(tokenizer, expected.tokens[row])
        assert expected.ends[row] == "stop", said
        assert re.fullmatch(COLOURS, said)
    assert re.fullmatch(r"-?[0-9]+", text(tokenizer, expected.tokens[plain[3]]))
    drafts = [Variant(draft=NAME), Variant(draft=NGRAM), Variant(draft=NAME), Variant(draft=NAME)]
    drafted = [
        start(engine, p, c, params, v) for p, c, v in zip(prompts, kinds, drafts, strict=True)
    ]
    found = Run(engine, drafted, MOST)
    assert found.proposed and found.accepted
    for row, twin in zip(drafted, plain, strict=True):
        assert found.tokens[row][:MOST] == expected.tokens[twin][:MOST]


def test_an_interrupted_row_goes_on_where_it_was(engine, tokenizer) -> None:
    constraint = Constraint(lark(tokenizer, f"start: /{COLOURS}/"))
    prompt = [7, 8, 9, 10]
    whole = start(engine, prompt, constraint)
    expected = Run(engine, [whole]).tokens[whole]
    row = start(engine, prompt, constraint)
    begun = Run(engine, [row], 5).tokens[row]
    engine.release(row)
    steering = row.sampling.steering
    again = admit(engine, row.tokens, prompt, GREEDY, steering)
    assert begun + Run(engine, [again]).tokens[again] == expected


def test_the_end_of_the_grammar_is_the_end(engine, tokenizer) -> None:
    row = start(engine, [5, 6], Constraint(lark(tokenizer, 'start: "so" "be" "it"')))
    done = Run(engine, [row])
    assert text(tokenizer, done.tokens[row]) == "sobeit"
    assert EOS not in done.tokens[row]
    assert done.ends[row] == "stop"


def test_a_grammar_that_fails_ends_its_row_alone(engine, tokenizer) -> None:
    good = start(engine, [5, 6], Constraint(lark(tokenizer, 'start: "good" "good"')))
    bad = start(engine, [5, 6], Constraint(lark(tokenizer, 'start: "good" "good"')))
    assert bad.sampling.steering is not None
    bad.sampling.steering.matcher.consume_token(1)  # which the grammar does not know
    done = Run(engine, [good, bad])
    assert done.ends == {good: "stop", bad: "error"}


def test_drafts_add_nothing_behind_the_end(engine, tokenizer) -> None:
    """A proposal may complete the grammar, and the model's own choice after it is no token."""
    fixed = Constraint(lark(tokenizer, 'start: "0123456789" "0123456789"'))
    prompt = list(tokenizer.encode("0123456789" * 4))
    plain = start(engine, prompt, fixed)
    drafted = start(engine, prompt, fixed, variant=Variant(draft=NGRAM))
    expected, found = Run(engine, [plain]), Run(engine, [drafted])
    assert found.accepted
    assert found.tokens[drafted] == expected.tokens[plain]
    assert (found.ends[drafted], expected.ends[plain]) == ("stop", "stop")


def test_a_model_has_more_tokens_than_its_tokenizer(tokenizer) -> None:
    """As many do, whose embeddings are padded."""
    grammar = lark(tokenizer, 'start: "a"')
    wide = grammar.vocab_size + 267
    (mask,) = Steering(Constraint(grammar), wide).masks([])
    found = joined([mask], wide)
    assert found is not None
    assert found.allowed.shape == (1, wide)
    (allowed,) = np.nonzero(np.array(found.allowed[0]))
    assert [tokenizer.token_text(int(token)) for token in allowed] == ["a"]


def test_markers_do_not_come_inside_a_text() -> None:
    """Not even those that are no special tokens, as of Qwen3."""
    fast = copy.deepcopy(loaded("qwen3").tokenizer._tokenizer.backend_tokenizer)
    fast.add_tokens([AddedToken("<tool_call>", special=False)])
    marker = fast.token_to_id("<tool_call>")
    grammars = Grammars(fast, [EOS])
    inside = Steering(Constraint(grammars.compile('start: /"[^"]*"/')), marker + 1)
    assert inside.advance([fast.token_to_id('"')]) == 1
    assert inside.permitted([fast.token_to_id("a")]) == 1
    assert inside.permitted([marker]) == 0
    named = Steering(Constraint(grammars.compile(f'start: <[{marker}]> "a"')), marker + 1)
    assert named.permitted([marker]) == 1


# thoughts

THOUGHTS = Thoughts((5,), (6,), "inside")


@pytest.mark.parametrize("draft", [None, NAME])
@pytest.mark.parametrize("end", [(6,), (6, 9, 7)])
@pytest.mark.parametrize("budget", [0, 12])
def test_a_budget_ends_a_thought(engine, tokenizer, budget, end, draft) -> None:
    thoughts = THOUGHTS._replace(end=end)
    grammar = lark(tokenizer, f"start: /{COLOURS}/")
    variant = Variant(draft=draft)
    barred = frozenset({EOS})
    rows = [
        start(engine, [40] * 8, Constraint(grammar, thoughts, budget, barred), SAMPLED, variant),
        start(engine, [40] * 8, Constraint(None, thoughts, budget), SAMPLED, variant),
    ]
    done = Run(engine, rows, 100)
    for row in rows:
        tokens = done.tokens[row]
        assert tuple(tokens[budget : budget + len(end)]) == end
    answer = text(tokenizer, done.tokens[rows[0]][budget + len(end) :])
    assert re.fullmatch(COLOURS, answer)


def test_a_reply_may_begin_with_a_thought(engine, tokenizer) -> None:
    """Where the template leaves that to the model, and the model wants to."""
    grammar = lark(tokenizer, f"start: /{COLOURS}/")
    opening = Constraint(grammar, THOUGHTS._replace(begins="opening"), 4, frozenset({EOS}))
    wants = replace(GREEDY, logit_bias=((5, 100.0),))
    thinks = start(engine, [40] * 8, opening, wants)
    answers = start(engine, [40] * 8, opening, replace(GREEDY, logit_bias=((5, -100.0),)))
    done = Run(engine, [thinks, answers])
    assert done.tokens[thinks][0] == 5
    assert done.tokens[thinks][5] == 6
    assert re.fullmatch(COLOURS, text(tokenizer, done.tokens[thinks][6:]))
    assert re.fullmatch(COLOURS, text(tokenizer, done.tokens[answers]))


def test_a_budget_is_for_all_thoughts_together() -> None:
    thinking = Thinking.of(THOUGHTS, 3)
    for token in (50, 51, 6, 52, 5):
        assert not thinking.forced
        thinking = thinking.after(token)
    thinking = thinking.after(53)
    assert thinking.forced == (6,)
    thinking = thinking.after(6).after(5)
    assert (thinking.phase, thinking.forced) == ("inside", (6,))


def test_a_marker_that_has_begun_is_not_begun_again() -> None:
    thinking = Thinking.of(Thoughts((5,), (6, 7, 8), "inside"), 2)
    assert thinking.after(50).after(6).forced == (7, 8)
    assert thinking.after(6).after(6).forced == (7, 8)
    assert thinking.after(6).after(50).forced == (6, 7, 8)


# compiling


def test_the_cache_is_bounded(tokenizer) -> None:
    grammars = Grammars(tokenizer._fast, [EOS], most=2)
    sources = [f'start: "{i}"' for i in range(3)]
    for source in sources:
        grammars.compile(source)
    assert grammars.kept(sources[0]) is None
    assert grammars.kept(sources[1]) is not None
    assert (grammars.hits, grammars.misses) == (1, 1)


def test_the_cache_is_bounded_in_bytes(tokenizer, monkeypatch) -> None:
    """Which the process that tried a grammar has measured."""
    grammars = Grammars(tokenizer._fast, [EOS])
    small, large = 'start: "a"', f"start: {' | '.join(f'/x{i}[a-z]*/' for i in range(3000))}"
    assert grammars.check(large).nbytes > grammars.check(small).nbytes + len(large)
    monkeypatch.setattr(grammar, "MOST_BYTES", grammars.check(large).nbytes + len(large))
    for source in (small, large):
        grammars.compile(source)
    assert grammars.kept(small) is None
    assert grammars.kept(large) is not None


PARTS = [{"type": "string", "pattern": f"a{{{i},{i + 50}}}.*b.{{{i}}}c"} for i in range(30)]
RUNAWAY = f"start: %json {json.dumps({'allOf': PARTS})}"


def test_a_trial_is_bounded() -> None:
    trials = Trials()
    try:
        assert trials.verdict('start: "a"').wrong == ""
        began = time.monotonic()
        assert trials.verdict(RUNAWAY).wrong == TOO_COSTLY
        assert time.monotonic() - began < 3 * MOST_WALL  # others may be busy, too
        assert trials.verdict("start: b").wrong.startswith("at 1")
    finally:
        trials.close()


def test_a_helper_that_is_gone_is_replaced() -> None:
    trials = Trials()
    try:
        assert trials.verdict('start: "a"').wrong == ""
        assert trials._process is not None
        trials._process.kill()
        trials._process.wait()
        assert trials.verdict('start: "a"').wrong == ""
    finally:
        trials.close()


def test_what_cannot_be_compiled(tokenizer) -> None:
    for source in ("start: nothing", "start: /(/", 'start: %json {"type": "no"}', ""):
        with pytest.raises(GrammarError):
            tokenizer.grammars.compile(source)
    with pytest.raises(GrammarError, match="tokenizer"):
        Grammars(None, [EOS]).compile('start: "a"')
