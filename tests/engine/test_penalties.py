"""Penalties, biases and log-probabilities of sampling against plain numpy."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from engine.params import SamplingParams
from engine.sampling import RowSampling, sample
from tests.engine.sampled import (
    GREEDY,
    assert_distributed,
    commit,
    expected,
    logits_of,
    run,
    tokens_of,
)


def penalised(logits: np.ndarray, params: SamplingParams, prompt: list[int], out: list[int]):
    """The adjusted logits of one row, token by token."""
    x = logits.astype(np.float64)
    for token, value in params.logit_bias:
        x[token] += value
    for token in {*prompt, *out}:
        x[token] *= params.repetition_penalty ** (1 if x[token] < 0 else -1)
    for token in set(out):
        x[token] -= params.presence_penalty + params.frequency_penalty * out.count(token)
    return x


@pytest.mark.parametrize(
    "params",
    [
        replace(GREEDY, repetition_penalty=1.5),
        replace(GREEDY, presence_penalty=1.0),
        replace(GREEDY, frequency_penalty=0.3),
        replace(GREEDY, frequency_penalty=-2.0),
        replace(
            GREEDY,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=0.15,
            logit_bias=((0, 1.5), (4, -0.5), (0, 0.5)),
        ),
    ],
    ids=["repetition", "presence", "frequency", "negative", "all"],
)
def test_penalties_match_a_plain_computation(params):
    width, prompt = 12, [0, 3, 3, 5]
    random = np.random.default_rng(0)
    # Beside a row without penalties and one that has others.
    others = [GREEDY, replace(GREEDY, presence_penalty=0.5)]
    rows = [RowSampling(p, prompt, width) for p in (others[0], params, others[1])]
    outs: list[list[int]] = [[], [], []]
    plain = []
    for step in range(25):
        logits = random.normal(0, 0.5, (3, width)).astype(np.float32)
        wants = [penalised(logits[i], r.params, prompt, outs[i]) for i, r in enumerate(rows)]
        sampled = sample(mx.array(logits), rows, [4 + step] * 3)
        commit(rows, sampled.tokens)
        for i, token in enumerate(sampled.tokens.tolist()):
            assert wants[i][token] >= wants[i].max() - 1e-5
            outs[i].append(token)
        plain.append(int(logits[1].argmax()))
    assert plain != outs[1], "the penalties changed nothing"


def test_penalties_act_on_the_sampled_distribution():
    params = SamplingParams(seed=7, repetition_penalty=2.0, logit_bias=((2, 1.0), (5, -100.0)))
    logits = logits_of(0, 1, 20)
    row = RowSampling(params, [1, 2, 3], 20)
    drawn = [sample(logits, [row], [i]).tokens.item() for i in range(2000)]
    shape = penalised(np.array(logits)[0], params, [1, 2, 3], [])
    assert_distributed(
        np.bincount(drawn, minlength=20), expected(mx.array(shape), SamplingParams())
    )


def test_a_large_bias_forces_a_token_and_a_negative_one_bans_it():
    logits = logits_of(1, 2, 100)
    best = mx.argmax(logits, axis=-1).tolist()
    params = [
        replace(GREEDY, logit_bias=((77, 100.0),)),
        replace(GREEDY, logit_bias=((best[1], -100.0),)),
    ]
    got = tokens_of(logits, params)
    assert got[0] == 77
    assert got[1] == np.array(logits)[1].argsort()[-2]


# log-probabilities


def test_logprobs_are_of_the_raw_distribution():
    logits = logits_of(5, 4, 120)
    params = [
        GREEDY,
        replace(GREEDY, logprobs=3, logit_bias=((11, 50.0),)),
        SamplingParams(seed=3, temperature=0.2, top_p=0.5, logprobs=0),
        SamplingParams(seed=4, logprobs=20),
    ]
    sampled = run(logits, params)
    assert sampled.asked == (1, 2, 3)
    assert sampled.logprobs is not None
    assert sampled.top is not None
    want = np.array(logits, np.float64)
    want -= np.log(np.exp(want).sum(axis=-1, keepdims=True))
    tokens = sampled.tokens.tolist()
    assert tokens[1] == 11
    ids, values = (np.array(a) for a in sampled.top)
    assert ids.shape == values.shape == (3, 20)
    for n, i in enumerate(sampled.asked):
        assert sampled.logprobs[n].item() == pytest.approx(want[i, tokens[i]], abs=1e-4)
        assert ids[n].tolist() == want[i].argsort()[::-1][:20].tolist()
        assert values[n] == pytest.approx(np.sort(want[i])[::-1][:20], abs=1e-4)


def test_no_alternatives_where_nobody_wants_them():
    sampled = run(logits_of(5, 2, 30), [GREEDY, replace(GREEDY, logprobs=0)])
    assert sampled.asked == (1,)
    assert sampled.top is None
    assert run(logits_of(5, 2, 30), [GREEDY, GREEDY]).logprobs is None


def test_more_alternatives_than_tokens():
    sampled = run(logits_of(5, 1, 6), [replace(GREEDY, logprobs=20)])
    assert sampled.top is not None
    assert sorted(sampled.top[0][0].tolist()) == list(range(6))
