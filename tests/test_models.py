"""The tiny models are what the other tests take them for: loadable, decisive, mindful."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache, make_prompt_cache

from .models import CONFIGS, SPECIAL, VOCABULARY, WINDOW, make, model_dir
from .oracle import Oracle, Reply, Verdict, compare

KINDS: dict[str, list[type]] = {
    "qwen3": [KVCache] * 2,
    "llama": [KVCache] * 2,
    "gemma3": [RotatingKVCache, KVCache, RotatingKVCache],
    "gpt_oss": [RotatingKVCache, KVCache, RotatingKVCache],
    "qwen3_next": [ArraysCache, KVCache, ArraysCache],
    "deepseek_v3": [KVCache] * 2,
}
families = pytest.mark.parametrize("family", CONFIGS)


@cache
def oracle(family: str) -> Oracle:
    return Oracle(model_dir(family))


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(len(SPECIAL), VOCABULARY) for _ in range(length)]


def prefilled(model: Any, tokens: list[int]) -> list[Any]:
    layers = make_prompt_cache(model)
    mx.eval(model(mx.array([tokens]), cache=layers), [layer.state for layer in layers])
    return layers


def next_logits(model: Any, layers: list[Any], token: int) -> mx.array:
    return model(mx.array([[token]]), cache=layers)[0, -1]


@families
def test_weights_are_loaded_as_written(family: str) -> None:
    written = mx.load(str(model_dir(family) / "model.safetensors"))
    loaded = dict(tree_flatten(oracle(family).model.parameters()))
    assert loaded.keys() == written.keys()
    assert all(loaded[name].dtype == mx.float32 for name in loaded)
    assert all(mx.array_equal(loaded[name], written[name]) for name in written)


@families
def test_replies_are_decisive_and_varied(family: str) -> None:
    replies = [oracle(family).cold(prompt(length), 24) for length in (1, 20, 80, 200)]
    assert all(len(reply.tokens) == len(reply.gaps) == 24 for reply in replies)
    assert all(len(set(reply.tokens)) >= 6 for reply in replies)
    assert all(token >= len(SPECIAL) for reply in replies for token in reply.tokens)
    gaps = [gap for reply in replies for gap in reply.gaps]
    assert sum(gap > 1e-3 for gap in gaps) >= 0.9 * len(gaps)


@families
def test_replies_are_repeated(family: str) -> None:
    first = oracle(family).cold(prompt(50), 24)
    again = Oracle(model_dir(family)).cold(prompt(50), 24)
    assert again == first


@families
def test_layers_keep_the_expected_state(family: str) -> None:
    layers = make_prompt_cache(oracle(family).model)
    assert [type(layer) for layer in layers] == KINDS[family]
    windows = {layer.max_size for layer in layers if isinstance(layer, RotatingKVCache)}
    assert windows <= {WINDOW}


@pytest.mark.parametrize(
    ("family", "kind"), [(f, kind) for f in KINDS for kind in dict.fromkeys(KINDS[f])]
)
def test_an_early_token_is_remembered(family: str, kind: type) -> None:
    """In each kind of state alone: only the layers of that kind have seen another token."""
    model = oracle(family).model
    tokens = prompt(120)
    changed = tokens[:]
    early = len(tokens) - 2 * WINDOW
    changed[early] = tokens[early] % (VOCABULARY - len(SPECIAL)) + len(SPECIAL)
    assert changed != tokens
    expected = next_logits(model, prefilled(model, tokens), 7)
    assert mx.array_equal(next_logits(model, prefilled(model, tokens), 7), expected)
    mixed = [
        other if isinstance(other, kind) else one
        for one, other in zip(prefilled(model, tokens), prefilled(model, changed), strict=True)
    ]
    assert mx.abs(next_logits(model, mixed, 7) - expected).max().item() > 1e-3


def test_sinks_matter(tmp_path: Path) -> None:
    model = Oracle(make("gpt_oss", tmp_path)).model
    with_sinks = model(mx.array([prompt(200)]))[0, -1]
    for layer in model.layers:
        layer.self_attn.sinks = mx.full(layer.self_attn.sinks.shape, -1e9)
    assert mx.abs(model(mx.array([prompt(200)]))[0, -1] - with_sinks).max().item() > 0.1


def test_arguments_decide_the_files(tmp_path: Path) -> None:
    def weights(name: str, **arguments: Any) -> bytes:
        return (make("llama", tmp_path / name, **arguments) / "model.safetensors").read_bytes()

    assert weights("one") == weights("same")
    assert weights("one") != weights("seed", seed=1)
    tied = Oracle(make("llama", tmp_path / "tied", tie_word_embeddings=True, num_hidden_layers=1))
    assert len(tied.model.layers) == 1
    assert "lm_head" not in tied.model
    with pytest.raises(KeyError):
        make("no such family", tmp_path / "none")


def test_tokenizer_speaks_chatml() -> None:
    tokenizer = oracle("qwen3").tokenizer
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2]
    assert set(tokenizer.eos_token_ids) == {2}
    text = "bado  fegi\n\tdéjà 日本 😀"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    messages = [
        {"role": "system", "content": "bado"},
        {"role": "user", "content": "fegi"},
        {"role": "assistant", "content": "zu"},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nbado<|im_end|>\n<|im_start|>user\nfegi<|im_end|>\n"
        "<|im_start|>assistant\nzu<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(1) == 4 and ids.count(2) == 3


def test_a_stop_token_ends_the_reply() -> None:
    whole = oracle("qwen3").cold(prompt(30), 24)
    stop = whole.tokens[5]
    end = whole.tokens.index(stop) + 1
    stopped = oracle("qwen3").cold(prompt(30), 24, frozenset({stop}))
    assert stopped == Reply(whole.tokens[:end], whole.gaps[:end])


def test_gaps_are_between_the_two_best() -> None:
    reply = oracle("llama").cold(prompt(30), 1)
    logits = oracle("llama").model(mx.array([prompt(30)]))[0, -1]
    third_second_best = mx.sort(logits)[-3:].tolist()
    assert reply.tokens == [mx.argmax(logits).item()]
    expected = third_second_best[2] - third_second_best[1]
    assert reply.gaps == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize(
    ("tokens", "verdict"),
    [
        ([5, 6, 7], Verdict("same", 3)),
        ([5, 9, 7], Verdict("tie", 1)),
        ([5, 9, 8], Verdict("tie", 1)),
        ([5, 9], Verdict("tie", 1)),
        ([5, 6, 8], Verdict("different", 2)),
        ([9, 9, 7], Verdict("different", 0)),
        ([5, 6], Verdict("different", 2)),
        ([5, 6, 7, 8], Verdict("different", 3)),
    ],
)
def test_only_the_first_difference_may_be_a_tie(tokens: list[int], verdict: Verdict) -> None:
    assert compare(tokens, Reply([5, 6, 7], [1.0, 1e-4, 0.5])) == verdict
