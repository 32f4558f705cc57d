"""What the tests of the server share: metrics, streams, prompts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.models import SPECIAL, VOCABULARY
from tests.oracle import Oracle, Reply

MODEL = "tiny-qwen3"
CONTEXT = 2048  # of the served model; less than it has, since long prompts take time
MOST_POLLS = 4000
DECISIVE = 1e-3  # nats; a reply whose every token leads by more is not decided by rounding


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.families = {f.name: f for f in text_string_to_metric_families(text)}
        self.samples = [s for f in self.families.values() for s in f.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of all samples of ``commons_NAME`` with these labels."""
        found = [
            s.value
            for s in self.samples
            if s.name == f"commons_{name}" and labels.items() <= s.labels.items()
        ]
        assert found, f"no sample of commons_{name} with {labels}"
        return sum(found)


def scrape(http: httpx.Client) -> Metrics:
    return Metrics(http.get("/metrics").raise_for_status().text)


def idle(metrics: Metrics) -> bool:
    """Whether the engine has nothing to do."""
    return metrics("requests_running") == 0 == metrics("requests_waiting")


def poll(http: httpx.Client, condition: Callable[[Metrics], bool]) -> Metrics:
    """The first scrape that meets ``condition``, of a bounded number."""
    for _ in range(MOST_POLLS):
        metrics = scrape(http)
        if condition(metrics):
            return metrics
    raise AssertionError("it did not come about")


def events(lines: Iterable[str]) -> Iterator[str]:
    """The data of server-sent events, [DONE] included."""
    for line in lines:
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def chunks(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of a stream, which must end in [DONE]."""
    data = list(events(lines))
    assert data[-1] == "[DONE]"
    assert "[DONE]" not in data[:-1]
    return [json.loads(d) for d in data[:-1]]


def stream(http: httpx.Client, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a streamed response."""
    with http.stream("POST", route, json=body | {"stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        return chunks(response.iter_lines())


def completion(max_tokens: int, **more: Any) -> dict[str, Any]:
    """A request for so many tokens, no fewer; ``more`` replaces and adds fields."""
    request = {"model": MODEL, "prompt": [5, 6, 7], "temperature": 0, "max_tokens": max_tokens}
    return request | {"ignore_eos": True} | more


def ids(length: int, seed: int) -> list[int]:
    """A prompt of its own, as token ids."""
    rng = random.Random(seed)
    return [rng.randrange(len(SPECIAL), VOCABULARY) for _ in range(length)]


def words(count: int, seed: int) -> str:
    """A text of its own."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choices(letters, k=5)) for _ in range(count))


def decisive(oracle: Oracle, length: int, max_tokens: int, seed: int) -> tuple[list[int], Reply]:
    """A prompt whose greedy reply nothing but a fault can change, and that reply."""
    for attempt in range(50):
        prompt = ids(length, seed * 1000 + attempt)
        reply = oracle.cold(prompt, max_tokens)
        if min(reply.gaps) > DECISIVE:
            return prompt, reply
    raise AssertionError("no decisive reply")


def text_of(oracle: Oracle, tokens: Iterable[int]) -> str:
    """The text of a reply."""
    return str(oracle.tokenizer.decode(list(tokens)))


def tokens_until(oracle: Oracle, tokens: Sequence[int], stops: Iterable[str]) -> int:
    """How many of ``tokens`` it takes for one of ``stops`` to be there."""
    stops = list(stops)
    for count in range(1, len(tokens) + 1):
        text = text_of(oracle, tokens[:count])
        if any(stop in text for stop in stops):
            return count
    raise AssertionError("none of the stop strings is there")


class Pieces:
    """A detokenizer whose tokens are the numbers of given texts."""

    def __init__(self, texts: Sequence[str], last: str = "") -> None:
        self._texts = texts
        self._last = last

    def add(self, token: int) -> str:
        return self._texts[token]

    def finish(self) -> str:
        return self._last
