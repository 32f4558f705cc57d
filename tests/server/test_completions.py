"""/v1/completions over a socket: prompts of every kind, limits, usage, streams."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from tests.oracle import Oracle

from .support import CONTEXT, MODEL, decisive, idle, ids, poll, scrape, stream, text_of, words

ROUTE = "/v1/completions"


def body(prompt: Any, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 12} | more


def complete(http: httpx.Client, prompt: Any, **more: Any) -> dict[str, Any]:
    response = http.post(ROUTE, json=body(prompt, **more))
    assert response.status_code == 200, response.text
    Completion.model_validate_json(response.content, strict=True)
    answer: dict[str, Any] = response.json()
    return answer


def test_greedy_text_is_what_mlx_lm_generates_cold(http: httpx.Client, oracle: Oracle) -> None:
    for seed, length in enumerate((1, 7, 70, 300)):
        prompt, reply = decisive(oracle, length, 24, seed)
        for _ in range(2):  # cold, and from the cache
            answer = complete(http, prompt, max_tokens=24)
            assert answer["choices"][0]["text"] == text_of(oracle, reply.tokens)
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == 24
            assert answer["usage"]["prompt_tokens"] == length


def test_streamed_text_is_the_whole_text(http: httpx.Client, oracle: Oracle) -> None:
    prompt, reply = decisive(oracle, 40, 24, 10)
    parts = stream(http, ROUTE, body(prompt, max_tokens=24))
    # The SDK's type takes no null for the reason, which OpenAI sends until the last chunk.
    Completion.model_validate(parts[-1], strict=True)
    assert "".join(p["choices"][0]["text"] for p in parts) == text_of(oracle, reply.tokens)
    assert [p["choices"][0]["finish_reason"] for p in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["choices"][0]["finish_reason"] == "length"
    assert len({p["id"] for p in parts}) == 1
    assert all("usage" not in p for p in parts)


def test_replies_side_by_side_are_each_the_cold_one(http: httpx.Client, oracle: Oracle) -> None:
    pairs = [decisive(oracle, 5 + 20 * i, 16, 20 + i) for i in range(5)]
    answer = complete(http, [prompt for prompt, _ in pairs], max_tokens=16)
    assert [c["index"] for c in answer["choices"]] == list(range(5))
    assert [c["text"] for c in answer["choices"]] == [text_of(oracle, r.tokens) for _, r in pairs]
    assert answer["usage"]["prompt_tokens"] == sum(len(p) for p, _ in pairs)
    assert answer["usage"]["completion_tokens"] == 5 * 16


def test_a_text_and_its_tokens_are_one_prompt(http: httpx.Client, oracle: Oracle) -> None:
    text = words(12, seed=1)
    tokens = oracle.tokenizer.encode(text)
    answers = [complete(http, p) for p in (text, [text], tokens, [tokens])]
    assert len({a["choices"][0]["text"] for a in answers}) == 1
    assert {a["usage"]["prompt_tokens"] for a in answers} == {len(tokens)}


def test_several_texts_give_several_choices(http: httpx.Client) -> None:
    texts = [words(5, seed=2), words(6, seed=3)]
    answer = complete(http, texts, n=2)
    single = [complete(http, text)["choices"][0]["text"] for text in texts]
    assert [c["text"] for c in answer["choices"]] == [single[0]] * 2 + [single[1]] * 2
    streamed = stream(http, ROUTE, body(texts, n=2))
    for index, choice in enumerate(answer["choices"]):
        parts = [c for p in streamed for c in p["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in parts) == choice["text"]
        assert [c["finish_reason"] for c in parts].count("length") == 1


def test_usage_counts_what_was_computed(http: httpx.Client) -> None:
    prompt = ids(150, seed=77)
    before = poll(http, idle)("prompt_computed_tokens_total")
    first = complete(http, prompt)["usage"]
    middle = scrape(http)("prompt_computed_tokens_total")
    second = complete(http, prompt)["usage"]
    after = scrape(http)("prompt_computed_tokens_total")
    cached = [u["prompt_tokens_details"]["cached_tokens"] for u in (first, second)]
    assert cached[0] == 0
    assert cached[1] > 0
    assert middle - before == 150 - cached[0]
    assert after - middle == 150 - cached[1]
    assert first["total_tokens"] == 150 + first["completion_tokens"]


def test_stream_ends_with_usage_where_asked(http: httpx.Client) -> None:
    request = body(ids(30, seed=78), stream_options={"include_usage": True})
    whole = complete(http, request["prompt"])["usage"]
    parts = stream(http, ROUTE, request)
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["prompt_tokens"] == 30
    assert parts[-1]["usage"]["completion_tokens"] == whole["completion_tokens"]
    assert parts[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert all("usage" not in p for p in parts[:-1])


def test_reply_is_short_unless_a_length_is_given(http: httpx.Client) -> None:
    request = body(ids(5, seed=4), ignore_eos=True)
    del request["max_tokens"]
    answer = http.post(ROUTE, json=request).json()
    assert answer["usage"]["completion_tokens"] == 16


def test_reply_ends_with_the_context(http: httpx.Client) -> None:
    prompt = ids(CONTEXT - 3, seed=5)
    answer = complete(http, prompt, max_tokens=1 << 40, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_stop_token_ends_the_reply_and_shows_not(http: httpx.Client, oracle: Oracle) -> None:
    prompt, reply = decisive(oracle, 20, 12, 30)
    stop = reply.tokens[6]
    kept = reply.tokens[: reply.tokens.index(stop)]
    answer = complete(http, prompt, stop_token_ids=[stop])
    assert answer["choices"][0]["text"] == text_of(oracle, kept)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(kept) + 1


def test_bias_forces_and_bans_tokens(http: httpx.Client, oracle: Oracle) -> None:
    prompt, reply = decisive(oracle, 20, 4, 31)
    forced = complete(http, prompt, max_tokens=4, logit_bias={"300": 100})
    assert forced["choices"][0]["text"] == text_of(oracle, [300] * 4)
    banned = complete(http, prompt, max_tokens=1, logit_bias={str(reply.tokens[0]): -100})
    assert banned["choices"][0]["text"] != text_of(oracle, reply.tokens[:1])


def test_logprobs_in_the_text_shape(http: httpx.Client) -> None:
    prompt = ids(25, seed=6)
    answer = complete(http, prompt, max_tokens=6, logprobs=3)["choices"][0]
    logprobs = answer["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == 6
    assert len(logprobs["top_logprobs"]) == len(logprobs["text_offset"]) == 6
    for chosen, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert 1 <= len(top) <= 3  # fewer where two tokens have one text
        assert chosen == pytest.approx(max(top.values()))  # greedy: the best one
        assert all(value <= 0 for value in top.values())
    begins = ["".join(logprobs["tokens"][:i]) for i in range(6)]
    assert logprobs["text_offset"] == [len(text) for text in begins]
    parts = stream(http, ROUTE, body(prompt, max_tokens=6, logprobs=3))
    shown = [p["choices"][0]["logprobs"] for p in parts if p["choices"][0]["logprobs"]]
    for name in ("tokens", "text_offset"):
        assert [x for s in shown for x in s[name]] == logprobs[name]


def test_logprobs_zero_means_the_chosen_token_alone(http: httpx.Client) -> None:
    logprobs = complete(http, ids(9, seed=7), max_tokens=3, logprobs=0)["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == 3
    assert all(not top for top in logprobs["top_logprobs"])


def test_sdk_reads_both_forms(client: OpenAI, oracle: Oracle) -> None:
    prompt, reply = decisive(oracle, 12, 8, 32)
    text = text_of(oracle, reply.tokens)
    whole = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8)
    assert whole.choices[0].text == text
    with client.completions.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=8, stream=True
    ) as parts:
        assert "".join(p.choices[0].text for p in parts) == text


@pytest.mark.anyio
async def test_seed_repeats_whatever_else_runs(aclient: AsyncOpenAI) -> None:
    async def sampled(seed: int | None, prompt: list[int]) -> str:
        answer = await aclient.completions.create(
            model=MODEL, prompt=prompt, temperature=1.0, top_p=0.9, max_tokens=20, seed=seed
        )
        return answer.choices[0].text

    prompt = ids(30, seed=8)
    alone = await sampled(41, prompt)
    assert await sampled(42, prompt) != alone
    texts: list[str] = []

    async def again() -> None:
        texts.append(await sampled(41, prompt))

    async with anyio.create_task_group() as group:
        for i in range(8):
            group.start_soon(again)
            group.start_soon(sampled, None, ids(10 + 9 * i, seed=100 + i))
    assert texts == [alone] * 8


def test_copies_with_a_seed_differ_and_repeat(http: httpx.Client) -> None:
    first, second = (
        complete(http, ids(10, seed=9), temperature=1.0, seed=(1 << 64) - 1, n=3)["choices"]
        for _ in range(2)
    )
    assert [c["text"] for c in first] == [c["text"] for c in second]
    assert len({c["text"] for c in first}) == 3
