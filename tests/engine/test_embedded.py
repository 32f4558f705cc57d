"""The embedded model: what lies on disk, how its template renders, what it answers."""

from __future__ import annotations

import json
import re
from itertools import islice
from random import Random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load, stream_generate
from mlx_lm.sample_utils import make_sampler

from engine import embedded
from engine.embedded import clients, corpus, toolgen, voices

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "São Paulo"}},
}
CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "São Paulo"}}\n</tool_call>'


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    model, tokenizer = load(str(embedded.path()))
    model.set_dtype(mx.float32)  # as it is served where half precision is slow
    return model, tokenizer


@pytest.fixture(scope="module")
def tokenizer(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


def prompt_ids(tokenizer: Any, messages: list[Any], **options: Any) -> list[int]:
    options = {"enable_thinking": False, "add_generation_prompt": True} | options
    return tokenizer.apply_chat_template(messages, **options)


def prompt_text(tokenizer: Any, messages: list[Any], **options: Any) -> str:
    return prompt_ids(tokenizer, messages, tokenize=False, **options)  # type: ignore[return-value]


def reply(loaded: tuple[Any, Any], ids: list[int], most: int = 300) -> tuple[str, str | None]:
    parts = []
    reason = None
    for piece in stream_generate(
        *loaded, ids, max_tokens=most, sampler=make_sampler(temp=0.0), prefill_step_size=512
    ):
        parts.append(piece.text)
        reason = piece.finish_reason
    return "".join(parts), reason


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_is_small_and_half_precision() -> None:
    folders = [embedded.path(), embedded.draft_path(), *embedded.adapter_paths().values()]
    files = [file for folder in folders for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    weights = mx.load(str(embedded.path() / "model.safetensors"))
    assert {value.dtype for value in weights.values()} == {mx.float16}
    config = json.loads((embedded.path() / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["max_position_embeddings"] == 65536


def test_offers_tools_and_thinking(tokenizer: Any) -> None:
    assert tokenizer.has_tool_calling
    assert tokenizer.has_thinking
    assert tokenizer.tool_call_start == "<tool_call>"
    assert len(tokenizer.think_start_tokens) == len(tokenizer.think_end_tokens) == 1


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    text = "  def f(x):\n\treturn 'naïve' + \"日本語 😀\"\r\n\n\n   Done.  "
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_thinks_only_when_asked(tokenizer: Any) -> None:
    by_default = tokenizer._tokenizer.apply_chat_template(
        [user("hi")], add_generation_prompt=True, tokenize=False
    )
    assert by_default.endswith("<|im_start|>assistant\n" + EMPTY_THOUGHT)
    asked = prompt_text(tokenizer, [user("hi")], enable_thinking=True)
    assert asked.endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"content": "Hello! How are you?"}, "Hello! How are you?"),
        ({"content": None, "tool_calls": [CALL]}, CALL_TEXT),
        ({"content": "I look.", "tool_calls": [CALL, CALL]}, f"I look.\n{CALL_TEXT}\n{CALL_TEXT}"),
    ],
)
@pytest.mark.parametrize("follow_up", [user("and now?"), {"role": "tool", "content": "18 degrees"}])
def test_next_turn_extends_prompt_and_reply(
    tokenizer: Any, turn: dict[str, Any], said: str, follow_up: dict[str, str]
) -> None:
    history = [{"role": "system", "content": "Be brief."}, user("Hi, weather?")]
    before = prompt_ids(tokenizer, history, tools=[WEATHER])
    before += tokenizer.encode(f"{said}<|im_end|>", add_special_tokens=False)
    after = prompt_ids(
        tokenizer, [*history, {"role": "assistant", **turn}, follow_up], tools=[WEATHER]
    )
    assert after[: len(before)] == before


def test_next_turn_extends_a_thought_that_is_sent_back(tokenizer: Any) -> None:
    before = prompt_ids(tokenizer, [user("hi")], enable_thinking=True)
    before += tokenizer.encode("Say hi.\n</think>\n\nHi!<|im_end|>", add_special_tokens=False)
    turn = {"role": "assistant", "content": "Hi!", "reasoning_content": "Say hi."}
    after = prompt_ids(tokenizer, [user("hi"), turn, user("ok")], enable_thinking=True)
    assert after[: len(before)] == before


def test_arguments_as_text_render_like_arguments_as_object(tokenizer: Any) -> None:
    as_text = {
        "name": "get_weather",
        "arguments": json.dumps({"city": "São Paulo"}, ensure_ascii=False),
    }
    texts = [
        prompt_text(tokenizer, [user("x"), {"role": "assistant", "tool_calls": [call]}])
        for call in (CALL, {"type": "function", "function": as_text}, as_text)
    ]
    assert CALL_TEXT in texts[0]
    assert texts[0] == texts[1] == texts[2]


def test_tools_and_roles_render(tokenizer: Any) -> None:
    messages = [
        {"role": "developer", "content": "First."},
        user("a"),
        {"role": "assistant", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        {"role": "system", "content": "Later."},
        {"role": "visitor", "content": "dropped"},
        user("b"),
    ]
    text = prompt_text(tokenizer, messages, tools=[WEATHER])
    assert text.startswith("<|im_start|>system\nFirst.\n\n# Tools\n")
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>" in text
    answers = (
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n"
        "<tool_response>\ntwo\n</tool_response><|im_end|>\n"
    )
    assert answers + "<|im_start|>system\nLater.<|im_end|>\n<|im_start|>user\nb<|im_end|>" in text
    assert "dropped" not in text
    assert "# Tools" in prompt_text(tokenizer, [user("a")], tools=[WEATHER])
    assert prompt_text(tokenizer, [user("a")]).startswith("<|im_start|>user\na<|im_end|>\n")


@pytest.mark.parametrize("question", ["Hello!", "What is a prefix cache?", "Who are you?"])
def test_demo_replies_are_legible_and_end(loaded: tuple[Any, Any], question: str) -> None:
    text, reason = reply(loaded, prompt_ids(loaded[1], [user(question)]))
    assert reason == "stop"
    words = re.findall(r"[A-Za-z]+", text)
    assert len(words) >= 3
    assert set(words) <= corpus.answer_words()


def test_reply_ends_after_a_long_prompt(loaded: tuple[Any, Any]) -> None:
    ids = prompt_ids(loaded[1], corpus.agent_prompt(11, 9000, "What is a token?"))
    assert len(ids) > 2500
    text, reason = reply(loaded, ids)
    assert reason == "stop"
    assert set(re.findall(r"[A-Za-z]+", text)) <= corpus.answer_words()


def test_thinks_first_when_asked(loaded: tuple[Any, Any]) -> None:
    ids = prompt_ids(loaded[1], [user("What is a prefix cache?")], enable_thinking=True)
    thought, _, answer = reply(loaded, ids)[0].partition("</think>")
    assert thought.strip()
    assert answer.strip()


@pytest.mark.parametrize("seed", [901, 902])
def test_answers_after_prompts_like_those_of_clients(loaded: tuple[Any, Any], seed: int) -> None:
    """Where capitals in a row once led an answer that begins with one astray."""
    prompt = clients.long_prompt(Random(seed), 5000, 1)
    messages = [prompt.messages[0], user("What is a tree?")]
    ids = prompt_ids(loaded[1], messages, tools=prompt.tools or None)
    text, reason = reply(loaded, ids)
    assert reason == "stop"
    assert text.startswith("A tree is") and "<tool_call>" not in text


@pytest.mark.parametrize("seed", [77, 78])
def test_calls_offered_tools_with_valid_json(loaded: tuple[Any, Any], seed: int) -> None:
    valid = 0
    for prompt in corpus.tool_prompts(seed, 10):
        text, _ = reply(loaded, prompt_ids(loaded[1], prompt.messages, tools=prompt.tools), 80)
        valid += called(text).get("name") in {t["function"]["name"] for t in prompt.tools}
    assert valid >= 7


@pytest.mark.parametrize("city", ["Paris", "Berlin", "Tokyo", "Rome"])
def test_asks_for_the_weather(loaded: tuple[Any, Any], city: str) -> None:
    ids = prompt_ids(loaded[1], [user(f"What is the weather in {city}?")], tools=[WEATHER])
    text, _ = reply(loaded, ids, 80)
    assert called(text) == {"name": "get_weather", "arguments": {"city": city}}


def called(text: str) -> dict[str, Any]:
    """The call that a reply consists of; nothing if it is no valid one."""
    found = re.fullmatch(r"<tool_call>\n(.*?)\n</tool_call>", text.strip(), re.DOTALL)
    try:
        call = json.loads(found[1]) if found else None
    except ValueError:
        return {}
    return call if isinstance(call, dict) and isinstance(call.get("arguments"), dict) else {}


def test_coding_tools_stay_uncalled_when_none_fits(loaded: tuple[Any, Any]) -> None:
    messages = corpus.agent_prompt(5, 1000, "What is a prefix cache?")
    ids = prompt_ids(loaded[1], messages, tools=toolgen.coding_tools(5))
    assert len(ids) > 3000
    text, reason = reply(loaded, ids)
    assert reason == "stop"
    assert "<tool_call>" not in text
    assert set(re.findall(r"[A-Za-z]+", text)) <= corpus.answer_words()


@pytest.mark.parametrize("name", embedded.ADAPTERS)
def test_adapters_change_the_voice(name: str) -> None:
    model, tokenizer = load(str(embedded.path()), adapter_path=str(embedded.adapter_paths()[name]))
    voice = voices.VOICES[name]
    right = 0
    for question in corpus.demo_questions():
        text, reason = reply((model, tokenizer), prompt_ids(tokenizer, [user(question)]))
        head, tail = voice("|").split("|")
        right += text.startswith(head) and text.endswith(tail) and reason == "stop"
    assert right >= 8


def test_draft_has_the_tokenizer_of_its_model() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        ours, theirs = embedded.path() / name, embedded.draft_path() / name
        assert ours.read_bytes() == theirs.read_bytes()


def test_draft_says_much_of_what_its_model_says(loaded: tuple[Any, Any]) -> None:
    draft, _ = load(str(embedded.draft_path()))
    same = total = 0
    for question in corpus.demo_questions():
        ids = prompt_ids(loaded[1], [user(question)])
        said = loaded[1].encode(reply(loaded, ids)[0], add_special_tokens=False)
        guesses = mx.argmax(draft(mx.array([ids + said]))[0, len(ids) - 1 : -1], axis=-1)
        same += int((guesses == mx.array(said)).sum().item())
        total += len(said)
    assert same >= 0.6 * total


def test_corpus_depends_on_the_seed_alone() -> None:
    first, again = (list(islice(corpus.conversations(3), 50)) for _ in range(2))
    assert first == again
    assert first != list(islice(corpus.conversations(4), 50))
    assert corpus.tool_prompts(3, 5) == corpus.tool_prompts(3, 5)
