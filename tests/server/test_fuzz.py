"""Bodies that nobody would write: never a fault of the server, and it answers afterwards."""

from __future__ import annotations

import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .support import MODEL, idle, poll


def mostly(sound: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Sound values, sometimes an odd one."""
    return st.one_of(*[sound] * 4, odd)


NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.sampled_from([0.0, 1e-320, 1e300, 5e-324, 1 << 31, 1 << 63, (1 << 64) - 1]),
)
TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["user", "system", "assistant", "tool", "text", "", "\0"])
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.lists(st.fixed_dictionaries({"type": TEXTS}, optional={"text": TEXTS}), max_size=2)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": TEXTS}, optional={"arguments": TEXTS})}
    ),
    max_size=2,
)
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": mostly(TEXTS, PARTS | ANYTHING),
    },
    optional={
        "tool_calls": mostly(CALLS, ANYTHING),
        "reasoning_content": TEXTS,
        "name": mostly(TEXTS, ANYTHING),
    },
)


UNITS = mostly(st.floats(0, 1), NUMBERS)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(-1, 4),
    "stop": mostly(st.text(min_size=1, max_size=3), TEXTS) | st.lists(TEXTS, max_size=3),
    "seed": mostly(st.integers(0, 1 << 63), NUMBERS),
    "temperature": UNITS,
    "top_p": UNITS,
    "top_k": mostly(st.integers(-1, 1000), NUMBERS),
    "min_p": UNITS,
    "frequency_penalty": UNITS,
    "presence_penalty": UNITS,
    "repetition_penalty": UNITS,
    "logit_bias": st.dictionaries(
        mostly(st.integers(0, 511).map(str), TEXTS),
        mostly(st.floats(-100, 100), NUMBERS),
        max_size=3,
    ),
    "stop_token_ids": st.lists(st.integers(-1, 600), max_size=3),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(-1, 21),
    "tools": st.lists(st.fixed_dictionaries({"function": st.just({"name": "f"})}), max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required"]),
    "response_format": st.just({"type": "text"}),
    "reasoning_effort": TEXTS,
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "ignore_eos": st.booleans(),
    "user": TEXTS,
    "metadata": st.dictionaries(TEXTS, mostly(TEXTS, ANYTHING), max_size=2),
    "store": st.booleans(),
    "enable_thinking": st.booleans(),
    "thinking_token_budget": st.integers(-2, 3),
    "thinking_budget": st.integers(-2, 3),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(["enable_thinking", "thinking", "reasoning_effort", "thinking_budget"]),
        mostly(st.booleans(), ANYTHING),
        max_size=2,
    ),
    "continue_final_message": st.booleans(),
    "add_generation_prompt": st.booleans(),
    "prediction": st.fixed_dictionaries({"type": st.just("content"), "content": TEXTS}),
}
# The length is always sound: long replies would only take time.
BASE = st.fixed_dictionaries(
    {
        "model": st.just(MODEL),
        "messages": st.lists(MESSAGES, min_size=1, max_size=3),
        "max_tokens": st.integers(1, 3),
    }
)
EXTRA = st.lists(st.sampled_from(list(FIELDS)), max_size=5, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)
BODIES = st.tuples(BASE, EXTRA).map(lambda t: t[0] | t[1])
SPOILT = st.tuples(BODIES, st.sampled_from([*FIELDS, "messages", "model"]), ANYTHING).map(
    lambda t: t[0] | {t[1]: t[2]} if t[1] != "n" or t[2] is None else t[0]
)

bounded = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def post(http: httpx.Client, body: Any) -> httpx.Response:
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code < 500, (response.status_code, response.text)
    if response.status_code != 200:
        assert response.json()["error"]["message"]
    return response


def test_sound_looking_bodies(http: httpx.Client) -> None:
    served = 0

    @bounded
    @given(body=BODIES)
    def check(body: dict[str, Any]) -> None:
        nonlocal served
        response = post(http, body)
        if response.status_code == 200:
            served += 1
            assert response.text.endswith("data: [DONE]\n\n" if body.get("stream") else "}")

    check()
    assert served > 10  # or none of it got as far as the engine


@bounded
@given(body=SPOILT | ANYTHING)
def test_spoilt_bodies(http: httpx.Client, body: Any) -> None:
    post(http, body)


def test_server_answers_afterwards(http: httpx.Client) -> None:
    assert poll(http, idle)("requests_total", finish_reason="error") == 0
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 1}
    assert post(http, body).status_code == 200
