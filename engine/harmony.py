"""The prompts of gpt-oss: how a conversation must be shaped for the harmony template.

That template names one call a message and infers from it whose result follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
ENDS = ("<|call|>", "<|return|>")
# The template knows three.
EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}

Message = dict[str, Any]


def is_harmony(inner: Any) -> bool:
    """Whether a tokenizer is of a model that writes harmony."""
    template = inner.chat_template
    if not (isinstance(template, str) and "<|channel|>" in template):
        return False
    vocabulary = inner.get_vocab()
    return all(token in vocabulary for token in TOKENS)


def end_ids(inner: Any) -> frozenset[int]:
    """The tokens that end a reply; some configurations list only one of them."""
    return frozenset(inner.convert_tokens_to_ids(list(ENDS)))


def shaped(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with a message of its own for each call, its result right behind it."""
    made: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls")
        if message["role"] != "assistant" or not calls:
            made.append(message)
            continue
        results = 0
        while results < len(rest) and rest[results]["role"] == "tool":
            results += 1
        made += _turn(message, calls, rest[:results])
        del rest[:results]
    return made


def _turn(message: Message, calls: Sequence[Message], results: Sequence[Message]) -> list[Message]:
    left = list(results)
    made: list[Message] = []
    for i, call in enumerate(calls):
        made.append(_call(message, call, first=i == 0))
        if (result := _result_of(call, left)) is not None:
            left.remove(result)
            made.append(result)
    return made + left


def _call(message: Message, call: Message, *, first: bool) -> Message:
    """One call; what was thought and said before the first one has one place in the template."""
    thought, said = message.get("reasoning_content"), message.get("content")
    made: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    if first and (before := "\n\n".join(filter(None, (thought, said)))):
        made["thinking"] = before
    return made


def _result_of(call: Message, results: Sequence[Message]) -> Message | None:
    for result in results:
        if result.get("tool_call_id") in (None, call.get("id")):
            return result
    return None


def variables(given: dict[str, Any]) -> dict[str, Any]:
    """What the template is told, in the words that it knows."""
    effort = given.get("reasoning_effort")
    if effort is None and given.get("enable_thinking") is False:
        effort = "none"
    if effort is None:
        return given
    return given | {"reasoning_effort": EFFORTS.get(effort, effort)}
