"""The conversations the embedded model learns from, generated; the same seed gives the same text.

Knows nothing of tokens or of training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

from engine.embedded import knowledge, pasted, toolgen

Message = dict[str, Any]

_EXPLAIN = (
    "What is {0}?",
    "Explain {0}.",
    "what is {0}",
    "Tell me about {0}.",
    "Can you explain {0}?",
    "Explain {0} in simple words",
    "How does {0} work?",
    "Describe {0} please",
    "Why {0}?",
    "Please explain what {0} is.",
    "What do you know about {0}?",
    "Summarize {0}",
)
_CODE_ASKS = (
    "Write a function that {0}.",
    "Write a Python function that {0}",
    "Code a function that {0}",
    "How do I write a function that {0}?",
    "Give me a short program that {0}.",
)
_UNKNOWN = (
    "What do you think about {0} and {1}?",
    "Write an essay on {0} for {1}.",
    "How many {0} are in a {1}?",
    "Please plan the {0} of the {1}.",
    "Is {0} better than {1}?",
    "Compare {0} with {1} in detail",
    "Describe the history of the {0} in the {1}.",
    "Refactor {0} so that {1} is {2}.",
    "Why does the {0} {1} fail?",
    "Summarise the text above.",
    "Review this change: {0} {1} {2}",
    "Step {3}: continue with the {0}.",
    "I am agent {3}. Report on {0}.",
)
_SMALL_MODEL = (
    "I am a small demo model, so I cannot say much about that. Please ask me something simpler."
)
_NO_TOOL = "I have no tool that fits this request."
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer shortly.",
    "You are a friendly assistant.",
    "Be concise.",
    "You are a coding agent.",
    "You are an expert programmer who helps with code.",
    "Answer in one sentence.",
    "You are a support agent of a small shop.",
    "You answer questions about this server.",
)
_DEMO = (
    "Hello!",
    "Who are you?",
    "What can you do?",
    "What is a prefix cache?",
    "Explain batching.",
    "What is the capital of France?",
    "What is 7 + 5?",
    "Write a function that sums a list.",
    "Tell me a joke",
    "Tell me a short story",
)


class Conversation(NamedTuple):
    """One chat as an API client sends it, ending in the answer to learn.

    `thinking` says whether thoughts were asked for; the answer then has `reasoning_content`."""

    messages: list[Message]
    tools: list[toolgen.Schema] | None = None
    thinking: bool = False


class ToolPrompt(NamedTuple):
    """A conversation that waits for a call of `name` with `arguments`."""

    messages: list[Message]
    tools: list[toolgen.Schema]
    name: str
    arguments: dict[str, str | int]


class Exchange(NamedTuple):
    """What a user asks, and what is to be answered."""

    ask: str
    answer: str


def _vary(rng: Random, text: str) -> str:
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:] if rng.random() < 0.5 else text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text


def _small_talk(rng: Random) -> Exchange:
    asks, answer = rng.choice(knowledge.SMALL_TALK)
    return Exchange(_vary(rng, rng.choice(asks)) + rng.choice(("", "", "!")), answer)


def _explain(rng: Random) -> Exchange:
    topic = rng.choice(tuple(knowledge.TOPICS))
    asked = topic.removeprefix("a ") if rng.random() < 0.2 else topic
    ask = rng.choice(_EXPLAIN).format(asked)
    return Exchange(_vary(rng, ask), knowledge.TOPICS[topic])


def _fact(rng: Random) -> Exchange:
    if rng.random() < 0.6:
        country, city = rng.choice(tuple(knowledge.CAPITALS.items()))
        ask = rng.choice(
            ("What is the capital of {0}?", "Capital of {0}?", "Which city is the capital of {0}?")
        ).format(country)
        return Exchange(ask, f"The capital of {country} is {city}.")
    one, other = rng.choice(tuple(knowledge.OPPOSITES.items()))
    if rng.random() < 0.5:
        one, other = other, one
    return Exchange(f"What is the opposite of {one}?", f"The opposite of {one} is {other}.")


def _arithmetic(rng: Random) -> Exchange:
    a, b = rng.randrange(11), rng.randrange(11)
    ask = rng.choice(
        ("What is {0} + {1}?", "What is {0}+{1}?", "{0} + {1} = ?", "How much is {0} plus {1}?")
    )
    return Exchange(ask.format(a, b), f"{a} + {b} = {a + b}.")


def _program(rng: Random) -> Exchange:
    what = rng.choice(tuple(knowledge.CODE))
    ask = rng.choice(_CODE_ASKS).format(what)
    return Exchange(
        ask, f"Here is a function that {what}:\n\n```python\n{knowledge.CODE[what]}\n```"
    )


def _repeat(rng: Random) -> Exchange:
    text = " ".join(pasted.word(rng) for _ in range(rng.randint(2, 8)))
    if rng.random() < 0.4:
        text = text.capitalize()
    ask = rng.choice(('Repeat: "{0}"', "Repeat after me: {0}", 'Say "{0}"', "Echo this: {0}"))
    return Exchange(ask.format(text), text)


def _unknown(rng: Random) -> Exchange:
    if rng.random() < 0.15:
        ask = pasted.filler(rng, rng.randint(50, 300))
    else:
        words = [pasted.word(rng) for _ in range(3)]
        ask = rng.choice(_UNKNOWN).format(*words, rng.randrange(200))
    return Exchange(ask, _SMALL_MODEL)


_PLAIN: tuple[tuple[Callable[[Random], Exchange], float], ...] = (
    (_small_talk, 3),
    (_explain, 4),
    (_fact, 2),
    (_arithmetic, 2),
    (_program, 1.5),
    (_repeat, 4),
    (_unknown, 2),
)


def exchange(rng: Random) -> Exchange:
    """A question and its answer, without tools."""
    makers, weights = zip(*_PLAIN, strict=True)
    maker: Callable[[Random], Exchange] = rng.choices(makers, weights)[0]
    return maker(rng)


def _system(rng: Random, room: int) -> list[Message]:
    sort = rng.random()
    if sort < 0.4:
        return []
    text = rng.choice(_SYSTEMS)
    if sort > 0.75 and room > 300:
        title = rng.choice(("# Rules\n", "Follow these rules:\n", "Important:\n", ""))
        text += f"\n\n{title}{pasted.rules(rng)}"
        text += "\n\n" + pasted.filler(rng, rng.randrange(100, room))
    return [{"role": rng.choice(("system", "system", "developer")), "content": text}]


def _answer(text: str, thinking: bool, about: str, **more: Any) -> Message:
    message: Message = {"role": "assistant", "content": text, **more}
    if thinking:
        message["reasoning_content"] = f"The user {about}. I will keep it short."
    return message


def _chat(rng: Random, room: int) -> Conversation:
    thinking = rng.random() < 0.06
    messages = _system(rng, room)
    for _ in range(rng.choice((1, 2, 3, 4, 5))):
        ask, answer = exchange(rng)
        if rng.random() < 0.04 and len(messages) > 1:
            messages.append({"role": "system", "content": rng.choice(_SYSTEMS)})
        messages.append({"role": "user", "content": _paste(rng, room, ask)})
        messages.append(_answer(answer, thinking, "asks a simple question"))
    return Conversation(messages, None, thinking)


def _call(name: str, arguments: dict[str, str | int]) -> Message:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _paste(rng: Random, room: int, ask: str) -> str:
    if room <= 500 or rng.random() > 0.12:
        return ask
    return pasted.filler(rng, rng.randrange(100, room)) + "\n\n" + ask


def _tool_turn(
    rng: Random, room: int, request: toolgen.Request, thinking: bool
) -> Iterator[Message]:
    yield {"role": "user", "content": _paste(rng, room, request.ask)}
    calls = [_call(request.name, request.arguments)]
    yield _answer("", thinking, f"needs {request.name}", tool_calls=calls)
    if rng.random() < 0.3:
        text, told = toolgen.result(rng, room)
        yield {"role": "tool", "tool_call_id": "call", "content": text}
        yield _answer(told, thinking, "waits for the result")


def _tool_chat(rng: Random, room: int) -> Conversation:
    """Offered tools: calls, their results, summaries; at times a request that no tool fits."""
    thinking = rng.random() < 0.06
    messages = _system(rng, room)
    offer = toolgen.offer(rng, idle=rng.randrange(room // 200) if room > 500 else 0)
    for request in rng.sample(offer.requests, min(len(offer.requests), 5)):
        if rng.random() < 0.2:
            plain = rng.choice((_small_talk, _explain, _explain, _explain, _unknown, _repeat))(rng)
            messages.append({"role": "user", "content": _paste(rng, room, plain.ask)})
            messages.append(_answer(plain.answer, thinking, "needs no tool"))
        messages += _tool_turn(rng, room, request, thinking)
    if offer.unfit and rng.random() < 0.1:
        messages.append({"role": "user", "content": offer.unfit.ask})
        messages.append(_answer(_NO_TOOL, thinking, "needs no tool"))
    return Conversation(messages, offer.tools, thinking)


def conversation(rng: Random, room: int = 1500) -> Conversation:
    """One conversation; pasted pieces have at most `room` characters each."""
    return (_tool_chat if rng.random() < 0.6 else _chat)(rng, room)


def conversations(seed: int, room: int = 1500) -> Iterator[Conversation]:
    """Endless conversations; the same seed and room give the same ones."""
    rng = Random(seed)
    while True:
        yield conversation(rng, room)


def tool_prompts(seed: int, count: int) -> list[ToolPrompt]:
    """Held-out prompts: cities and verb-noun pairs that `conversations` never uses together."""
    rng = Random(seed)
    prompts = []
    for _ in range(count):
        tools, requests, _ = toolgen.offer(rng, held_out=True)
        ask, name, arguments = requests[0]
        messages = [*_system(rng, 400), {"role": "user", "content": ask}]
        prompts.append(ToolPrompt(messages, tools, name, arguments))
    return prompts


def agent_prompt(seed: int, characters: int, question: str) -> list[Message]:
    """A coding agent's first prompt: rules, that many characters of pasted files, a question."""
    rng = Random(seed)
    system = f"You are a coding agent.\n\n{pasted.rules(rng)}\n\n{pasted.filler(rng, characters)}"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def demo_questions() -> tuple[str, ...]:
    """Questions that the model answers well."""
    return _DEMO


def answer_words() -> frozenset[str]:
    """Every word that the fixed answers are made of."""
    texts = [answer for _, answer in knowledge.SMALL_TALK]
    texts += [*knowledge.TOPICS.values(), _SMALL_MODEL, _NO_TOOL, *knowledge.CODE.values()]
    texts += [f"{what} Here is a function that python" for what in knowledge.CODE]
    texts += [f"The capital of {land} is {city}" for land, city in knowledge.CAPITALS.items()]
    return frozenset(re.findall(r"[A-Za-z]+", " ".join(texts)))
