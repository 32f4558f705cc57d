"""Piecewise tokenising against the tokenizers library encoding whole texts."""

from __future__ import annotations

import threading
import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from engine import embedded
from engine.segments import ENTRY, SegmentedEncoder


@cache
def fast() -> Tokenizer:
    return Tokenizer.from_file(str(embedded.path() / "tokenizer.json"))


@cache
def encoder() -> SegmentedEncoder:
    return SegmentedEncoder(fast())


PIECES = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "\n", " ", "user"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=20)), max_size=20))
def test_pieces_give_what_the_whole_text_gives(parts):
    text = "".join(parts)
    assert encoder().segmented
    assert encoder().encode(text).tolist() == fast().encode(text, add_special_tokens=False).ids


class Counting:
    """Passes on to a tokenizer and remembers what it was asked to encode."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner, self.asked = inner, []

    def get_added_tokens_decoder(self):
        return self.inner.get_added_tokens_decoder()

    def encode_batch_fast(self, texts, add_special_tokens):
        self.asked += texts
        return self.inner.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


def test_only_what_is_new_is_tokenised():
    counting = Counting(fast())
    segments = SegmentedEncoder(counting)
    first = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
    segments.encode(first)
    counting.asked.clear()
    segments.encode(first + "<|im_start|>assistant\nHi!<|im_end|>\n")
    assert counting.asked == ["assistant\nHi!"]


def test_what_is_kept_is_bounded_and_the_oldest_goes():
    counting = Counting(fast())
    segments = SegmentedEncoder(counting, most_characters=2 * (4 + ENTRY) + 2)
    for text in ("aaaa", "bbbb", "aaaa", "cccc"):
        segments.encode(text)
    counting.asked.clear()
    for text in ("aaaa", "cccc", "bbbb"):
        segments.encode(text)
    assert counting.asked == ["bbbb"]


def prefixing() -> Tokenizer:
    """Puts a space before the text's first word only, as some SentencePiece conversions do."""
    made = fast_copy()
    made.normalizer = normalizers.Prepend("▁")
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace()
    return made


def stripping() -> Tokenizer:
    """A special token that swallows the white space after it."""
    made = fast_copy()
    made.add_special_tokens([AddedToken("<eat>", rstrip=True, special=True)])
    return made


def fast_copy() -> Tokenizer:
    made = Tokenizer(BPE(vocab={"a": 0, "▁": 1, "b": 2, "<s>": 3, " ": 4, "\n": 5}, merges=[]))
    made.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    return made


@pytest.mark.parametrize("make", [prefixing, stripping])
def test_a_tokenizer_that_looks_beyond_the_piece_encodes_whole_texts(make):
    made = make()
    segments = SegmentedEncoder(made)
    for text in ("a<s>b<s> a", "<s>a", "a<eat>  b", " a <s> b "):
        assert segments.encode(text).tolist() == made.encode(text, add_special_tokens=False).ids


def test_what_one_domain_has_sent_saves_another_nothing():
    counting = Counting(fast())
    segments = SegmentedEncoder(counting)
    text = "<|im_start|>user\nHello!<|im_end|>"
    for domain, asked in (("one", True), ("two", True), ("one", False), ("two", False)):
        counting.asked.clear()
        assert segments.encode(text, domain).tolist() == segments.encode(text).tolist()
        assert ("user\nHello!" in counting.asked[:1]) == asked


def test_other_threads_go_on_meanwhile() -> None:
    """A long prompt must hold up neither the event loop nor the engine's thread."""
    encoder = SegmentedEncoder(fast())
    text, ticks, over = "many words 0123 " * 60_000, [0], threading.Event()

    def tick() -> None:
        while not over.wait(0.002):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    encoder.encode(text)
    took = time.perf_counter() - began
    over.set()
    thread.join()
    assert ticks[0] > took / 0.02
