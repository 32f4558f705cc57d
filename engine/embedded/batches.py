"""From conversations to batches: tokenizer, learning weights per token, copying exercises."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.embedded import corpus, pasted

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
# Names, numbers and quoted text are the same tokens in a request and in the JSON that repeats them,
# so that they can be copied: a space sticks to a word only between two lower-case words, and the
# marks around JSON strings are tokens of their own.
_WORDS = (
    r"\n+[ \t]*|\p{Ll}+ (?=\p{Ll})|\p{Ll}+|\p{Lu}\p{Ll}*|\p{N}|"
    r"[:, ]*[\"'{}\[\]][\"'{}\[\]:, ]*|[ \t]+|[^\s\p{L}\p{N}\"'{}\[\]]+|\s+|\p{L}+"
)

Change = Callable[[corpus.Conversation], corpus.Conversation]

# Weight of a token that has to be looked up far back: one that begins an answer, or a string in a
# call. What follows it is learned in no time, what begins it is a twentieth of all tokens.
_LOOKED_UP = 4.0


class Batch(NamedTuple):
    """Inputs (rows, length), flat positions that are learned, their targets and weights."""

    inputs: NDArray[np.int32]
    where: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]


def make_tokenizer(vocab_size: int, template: str, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from generated conversations and pasted text."""
    rng = Random(seed)
    texts = [
        message["content"]
        for chat in islice(corpus.conversations(seed), 4000)
        for message in chat.messages
        if message["content"]
    ]
    texts += [
        json.dumps(message["tool_calls"][0]["function"])
        for chat in islice(corpus.conversations(seed), 4000)
        for message in chat.messages
        if "tool_calls" in message
    ]
    texts += [
        str(tool)
        for chat in islice(corpus.conversations(seed + 1), 600)
        for tool in chat.tools or ()
    ]
    texts += [template] * 100
    texts += [pasted.library(rng, 4000) for _ in range(200)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[
            *(AddedToken(t, special=True) for t in CONTROL),
            *(AddedToken(t, special=False, normalized=False) for t in MARKUP),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer makes all of them special; markup must survive skip_special_tokens.
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=65536,
    )
    fast.chat_template = template
    return fast


class Row(NamedTuple):
    """Token ids and their learning weights."""

    ids: list[int]
    weights: list[float]


class Encoder:
    """Turns conversations into tokens and a learning weight per token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._begin, self._end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        self._opening = tokenizer.convert_tokens_to_ids('":Ġ"')
        self._filler = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        head = "<|im_start|>assistant\n<think>\n"
        self._heads = [
            tokenizer.encode(text, add_special_tokens=False)
            for text in (head + "\n</think>\n\n", head)
        ]

    def chat(self, chat: corpus.Conversation) -> tuple[list[int], list[float]]:
        """Answers are learned, most of all the tokens that the one before says nothing about."""
        ids = self._tokenizer.apply_chat_template(
            chat.messages, tools=chat.tools, enable_thinking=chat.thinking, return_dict=False
        )
        weights = [0.0] * len(ids)
        at = 0
        head = self._heads[chat.thinking]
        while at < len(ids):
            if ids[at] == self._begin and ids[at : at + len(head)] == head:
                at += len(head)
                stop = ids.index(self._end, at) + 1
                weights[at:stop] = (
                    _LOOKED_UP if i == at or ids[i - 1] == self._opening else 1.0
                    for i in range(at, stop)
                )
                at = stop
            at += 1
        return ids, weights

    def filled(self, rows: list[Row]) -> list[Row]:
        """Rows as long as the longest of them, filled up with what is not learned."""
        longest = max(len(row.ids) for row in rows)
        return [
            Row(
                row.ids + [self._filler] * (longest - len(row.ids)),
                row.weights + [0.0] * (longest - len(row.ids)),
            )
            for row in rows
        ]

    def rows(
        self, seed: int, room: int, length: int, change: Change | None = None
    ) -> Iterator[Row]:
        """Endless rows of whole conversations, filled up with end-of-text that is not learned.

        `change` turns each conversation into what is to be learned instead.
        """
        said = corpus.conversations(seed, room)
        chats = (self.chat(chat) for chat in (map(change, said) if change else said))
        fitting = (pair for pair in chats if len(pair[0]) <= length + 1)
        waiting = list(islice(fitting, 12))
        while True:
            ids: list[int] = []
            weights: list[float] = []
            for pair in tuple(waiting):
                if len(ids) + len(pair[0]) <= length + 1:
                    ids += pair[0]
                    weights += pair[1]
                    waiting.remove(pair)
                    waiting.append(next(fitting))
            missing = length + 1 - len(ids)
            yield Row(ids + [self._filler] * missing, weights + [0.0] * missing)


def copying(rng: np.random.Generator, vocab: int, rows: int, length: int) -> Batch:
    """Random tokens, repeated again and again; only the repetitions are learned."""
    first = len(CONTROL) + len(MARKUP)
    tokens = np.empty((rows, length + 1), dtype=np.int32)
    known = np.zeros((rows, length + 1), dtype=np.float32)
    for row in range(rows):
        period = int(rng.integers(16, length // 2))
        run = rng.integers(first, vocab, period, dtype=np.int32)
        tokens[row] = np.resize(run, length + 1)
        known[row, period + 1 :] = 1
    return _batch(tokens, known)


def _batch(tokens: NDArray[np.int32], weights: NDArray[np.float32]) -> Batch:
    weights = weights[:, 1:].reshape(-1)
    where = np.flatnonzero(weights).astype(np.int32)
    return Batch(
        np.ascontiguousarray(tokens[:, :-1]),
        where,
        tokens[:, 1:].reshape(-1)[where],
        weights[where],
    )


def chats(rows: list[Row]) -> Batch:
    """Conversations; only the answers are learned."""
    tokens = np.array([row.ids for row in rows], dtype=np.int32)
    return _batch(tokens, np.array([row.weights for row in rows], dtype=np.float32))


def template_text(folder: Path) -> str:
    """The chat template that lies in the model directory."""
    return (folder / "chat_template.jinja").read_text(encoding="utf-8")
