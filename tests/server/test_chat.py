"""/v1/chat/completions over a socket: messages of every kind, limits, stops, streams, the SDK."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.oracle import Oracle

from .support import (
    CONTEXT,
    DECISIVE,
    MODEL,
    idle,
    poll,
    scrape,
    stream,
    text_of,
    tokens_until,
    words,
)

ROUTE = "/v1/chat/completions"


def body(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 12} | more


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def chat(http: httpx.Client, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = http.post(ROUTE, json=body(*messages, **more))
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate_json(response.content, strict=True)
    answer: dict[str, Any] = response.json()
    return answer


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def rendered(oracle: Oracle, *messages: tuple[str, str]) -> list[int]:
    """The tokens of a conversation by the model's template, written out."""
    turns = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages]
    tokens: list[int] = oracle.tokenizer.encode("".join(turns) + "<|im_start|>assistant\n")
    return tokens


def decided(oracle: Oracle, max_tokens: int, seed: int) -> tuple[str, list[int]]:
    """A question whose greedy answer only a fault can change, and that answer's tokens."""
    for attempt in range(50):
        question = words(12, seed * 1000 + attempt)
        reply = oracle.cold(rendered(oracle, ("user", question)), max_tokens)
        if min(reply.gaps) > DECISIVE:
            return question, reply.tokens
    raise AssertionError("no decisive answer")


def test_greedy_answer_is_what_mlx_lm_generates_cold(http: httpx.Client, oracle: Oracle) -> None:
    question, tokens = decided(oracle, 24, seed=1)
    for _ in range(2):  # cold, and from the cache
        answer = chat(http, user(question), max_tokens=24)
        assert content(answer) == text_of(oracle, tokens)
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == MODEL
    assert answer["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (("system", "user"), ("system", "user")),
        (("developer", "user"), ("system", "user")),
        (("user", "assistant", "user"), ("user", "assistant", "user")),
        (("user", "assistant", "tool"), ("user", "assistant", "tool")),
    ],
)
def test_roles(
    http: httpx.Client, oracle: Oracle, given: tuple[str, ...], seen: tuple[str, ...]
) -> None:
    texts = [words(6, seed=20 + i) for i in range(len(given))]
    prompt = rendered(oracle, *zip(seen, texts, strict=True))
    messages = [{"role": r, "content": t} for r, t in zip(given, texts, strict=True)]
    answer = chat(http, *messages)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    raw = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 12}
    same = http.post("/v1/completions", json=raw).json()
    assert content(answer) == same["choices"][0]["text"]


def test_a_last_assistant_message_is_continued(http: httpx.Client, oracle: Oracle) -> None:
    opening = rendered(oracle, ("user", "go on")) + oracle.tokenizer.encode("so it")
    answer = chat(http, user("go on"), {"role": "assistant", "content": "so it"})
    raw = {"model": MODEL, "prompt": opening, "temperature": 0, "max_tokens": 12}
    assert content(answer) == http.post("/v1/completions", json=raw).json()["choices"][0]["text"]


def test_content_parts_are_one_text(http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert content(chat(http, user(parts))) == content(chat(http, user("one\ntwo")))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no json"}}]},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": "[" * 99999}}],
        },
        {"role": "assistant", "content": "x", "refusal": None, "audio": None, "annotations": []},
        {"role": "user", "content": "", "name": "anna"},
        {"role": "user", "content": []},
    ],
)
def test_unusual_messages_are_taken(http: httpx.Client, message: dict[str, Any]) -> None:
    assert chat(http, message, user("hello"), max_tokens=1)["usage"]["completion_tokens"] == 1


def test_streamed_answer_is_the_whole_answer(http: httpx.Client) -> None:
    question = user(words(10, seed=30))
    text = content(chat(http, question, max_tokens=30))
    parts = stream(http, ROUTE, body(question, max_tokens=30))
    for part in parts:
        ChatCompletionChunk.model_validate(part, strict=True)
    deltas = [p["choices"][0]["delta"] for p in parts]
    assert deltas[0]["role"] == "assistant"
    assert all("role" not in d for d in deltas[1:])
    assert "".join(d.get("content", "") for d in deltas) == text
    reasons = [p["choices"][0]["finish_reason"] for p in parts]
    assert reasons == [None] * (len(parts) - 1) + ["length"]
    assert len({(p["id"], p["created"], p["object"]) for p in parts}) == 1
    assert parts[0]["object"] == "chat.completion.chunk"


def test_several_answers(http: httpx.Client) -> None:
    question = user(words(10, seed=31))
    answer = chat(http, question, n=3, temperature=1.0, seed=5)
    texts = [c["message"]["content"] for c in answer["choices"]]
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] <= 36
    parts = stream(http, ROUTE, body(question, n=3, temperature=1.0, seed=5))
    for index, text in enumerate(texts):
        own = [c for p in parts for c in p["choices"] if c["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in own) == text
        assert [c["delta"].get("role") for c in own].count("assistant") == 1
        assert sum(c["finish_reason"] is not None for c in own) == 1


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_string_ends_the_answer(http: httpx.Client, oracle: Oracle, as_list: bool) -> None:
    question, tokens = decided(oracle, 24, seed=2)
    whole = text_of(oracle, tokens)
    first = text_of(oracle, tokens[:8])
    assert whole.startswith(first)
    for width in (1, 2, 5, 9):  # within tokens and across them
        stop = whole[len(first) - 1 : len(first) - 1 + width]
        wanted: Any = ["never there", stop] if as_list else stop
        kept = whole[: whole.index(stop)]
        answer = chat(http, user(question), max_tokens=24, stop=wanted)
        assert content(answer) == kept
        assert answer["choices"][0]["finish_reason"] == "stop"
        used = tokens_until(oracle, tokens, [stop])
        assert answer["usage"]["completion_tokens"] == used
        parts = stream(
            http,
            ROUTE,
            body(
                user(question), max_tokens=24, stop=wanted, stream_options={"include_usage": True}
            ),
        )
        deltas = [c["delta"].get("content", "") for p in parts for c in p["choices"]]
        assert "".join(deltas) == kept
        assert parts[-2]["choices"][0]["finish_reason"] == "stop"
        assert parts[-1]["usage"]["completion_tokens"] == used


def test_a_stop_that_never_comes_changes_nothing(http: httpx.Client, oracle: Oracle) -> None:
    question, tokens = decided(oracle, 12, seed=3)
    whole = text_of(oracle, tokens)
    answer = chat(http, user(question), stop=[whole[-3:] + "?", "\0"])
    assert content(answer) == whole
    assert answer["choices"][0]["finish_reason"] == "length"


def test_lengths(http: httpx.Client) -> None:
    def length(**limits: Any) -> int:
        answer = chat(http, user("count"), ignore_eos=True, **limits)
        used: int = answer["usage"]["completion_tokens"]
        return used

    assert length(max_tokens=5) == 5
    assert length(max_tokens=None, max_completion_tokens=6) == 6
    assert length(max_tokens=5, max_completion_tokens=7) == 7


def test_answer_ends_with_the_context(http: httpx.Client, oracle: Oracle) -> None:
    unit = len(oracle.tokenizer.encode(" x" * 100)) / 100
    question = user(" x" * int((CONTEXT - 40) / unit))
    answer = chat(http, question, max_tokens=None, ignore_eos=True)
    usage = answer["usage"]
    assert CONTEXT - 60 < usage["prompt_tokens"] < CONTEXT
    assert usage["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


def test_logprobs(http: httpx.Client, oracle: Oracle) -> None:
    question, tokens = decided(oracle, 8, seed=4)
    wants = {"logprobs": True, "top_logprobs": 4, "max_tokens": 8}
    answer = chat(http, user(question), **wants)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == 8
    raw = b"".join(bytes(e["bytes"]) for e in entries)
    text = raw.decode("utf-8", "replace")
    assert text.removeprefix(" ") == text_of(oracle, tokens).removeprefix(" ")
    for entry in entries:
        values = [t["logprob"] for t in entry["top_logprobs"]]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert entry["logprob"] == pytest.approx(values[0])
        assert entry["token"] == entry["top_logprobs"][0]["token"]
    parts = stream(http, ROUTE, body(user(question), **wants))
    for part in parts:
        ChatCompletionChunk.model_validate(part, strict=True)
    shown = [p["choices"][0]["logprobs"] for p in parts if p["choices"][0]["logprobs"]]
    streamed = [e["bytes"] for s in shown for e in s["content"]]
    assert streamed == [e["bytes"] for e in entries]
    bare = chat(http, user(question), logprobs=True)["choices"][0]["logprobs"]["content"]
    assert all(e["top_logprobs"] == [] for e in bare)
    assert chat(http, user(question))["choices"][0]["logprobs"] is None


def test_usage_counts_what_was_computed(http: httpx.Client) -> None:
    system = {"role": "system", "content": words(60, seed=40)}
    before = poll(http, idle)("prompt_computed_tokens_total")
    cached = []
    for question in ("first", "first", "another"):
        usage = chat(http, system, user(question))["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        after = scrape(http)("prompt_computed_tokens_total")
        assert after - before == usage["prompt_tokens"] - cached[-1]
        before = after
    assert cached[1] > cached[2] > 100 > cached[0]


def test_sdk_reads_both_forms(client: OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": [user(words(9, seed=41))], "temperature": 0}
    whole = client.chat.completions.create(**ask, max_completion_tokens=9)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens is not None
    with client.chat.completions.create(
        **ask, max_completion_tokens=9, stream=True, stream_options={"include_usage": True}
    ) as parts:
        seen = list(parts)
    text = "".join(p.choices[0].delta.content or "" for p in seen if p.choices)
    assert text == whole.choices[0].message.content
    assert seen[-1].usage is not None
    assert seen[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_tiny_temperature_is_greedy(http: httpx.Client) -> None:
    question = user(words(9, seed=42))
    greedy = content(chat(http, question))
    for temperature in (5e-324, 1e-40, 1e-9):
        assert content(chat(http, question, temperature=temperature)) == greedy
    assert content(chat(http, question, temperature=1.0, top_p=0)) == greedy
    assert content(chat(http, question, temperature=1.0, top_k=1)) == greedy


@pytest.mark.anyio
async def test_many_at_once_each_get_their_own(aclient: AsyncOpenAI, oracle: Oracle) -> None:
    pairs = [decided(oracle, 16, seed=50 + i) for i in range(6)]
    answers: dict[str, str | None] = {}

    async def ask(question: str) -> None:
        answer = await aclient.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=16,
        )
        answers[question] = answer.choices[0].message.content

    async with anyio.create_task_group() as group:
        for question, _ in pairs:
            group.start_soon(ask, question)
    assert answers == {question: text_of(oracle, tokens) for question, tokens in pairs}
