"""For those who prefer locust: agents with a common prompt, and now and then a long one-off prompt.

``make locust``, or ``pip install locust`` into an environment of its own and then
``locust -f deploy/loadtest/locustfile.py --host http://127.0.0.1:8000``. Locust brings the clients,
the ramp and the page. Each request is a ``reply``, timed to its end, with the number of characters
as its length; beside it ``TTFT`` is the time to its first text.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from locust import HttpUser, between, events, task
from locust.exception import StopUser

sys.path.append(str(Path(__file__).resolve().parents[2]))

from server.bench_text import CHARS_PER_TOKEN, make_text

numbers = itertools.count()


@events.init_command_line_parser.add_listener
def options(parser: Any) -> None:
    """What is asked for, and by whom."""
    parser.add_argument("--model", default="", help="by default the first one that is listed")
    parser.add_argument("--key", default="", help="API key", is_secret=True)
    parser.add_argument("--system-tokens", type=int, default=4000)
    parser.add_argument("--one-off-tokens", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=48)


def text(seed: str, tokens: int) -> str:
    """Text of roughly so many tokens."""
    return make_text(seed, int(tokens * CHARS_PER_TOKEN))


class Client(HttpUser):
    """Asks by streams, as agents do."""

    abstract = True

    def on_start(self) -> None:
        """Finds the model."""
        asked = self.environment.parsed_options
        if asked.key:
            self.client.headers["Authorization"] = f"Bearer {asked.key}"
        self.model = asked.model
        if not self.model:
            self.model = self._first_model()

    def _first_model(self) -> str:
        with self.client.get("/v1/models", catch_response=True) as response:
            if response.status_code == 200:
                return str(response.json()["data"][0]["id"])
            response.failure(_said_instead(response))
        raise StopUser  # locust has counted why

    def reply(self, messages: list[dict[str, str]], max_tokens: int) -> str | None:
        """The text of a reply, timed; None if there is none, which locust has counted then."""
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        began, said = time.perf_counter(), []
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, catch_response=True, name="reply"
        ) as response:
            if response.status_code != 200:
                response.failure(_said_instead(response))
                return None
            try:
                for piece in pieces(response.iter_lines()):
                    if not said:
                        self._tell_ttft(began, len(piece))
                    said.append(piece)
            except ValueError as error:
                response.failure(str(error))
                return None
            # Locust itself has timed the headers only.
            response.request_meta["response_time"] = 1e3 * (time.perf_counter() - began)
            response.request_meta["response_length"] = sum(map(len, said))
            response.success()
        return "".join(said)

    def _tell_ttft(self, began: float, length: int) -> None:
        self.environment.events.request.fire(
            request_type="STREAM",
            name="TTFT",
            response_time=1e3 * (time.perf_counter() - began),
            response_length=length,
            exception=None,
            context={},
        )


class Agent(Client):
    """Holds conversations that begin with everybody's prompt, and keeps the replies."""

    weight = 7
    wait_time = between(0, 1)

    @task
    def converse(self) -> None:
        """One conversation."""
        asked, number = self.environment.parsed_options, next(numbers)
        messages = [{"role": "system", "content": text("locust system", asked.system_tokens)}]
        for turn in range(asked.turns):
            question = text(f"locust {number} {turn}", 150)
            messages.append({"role": "user", "content": f"agent {number}: {question}"})
            reply = self.reply(messages, asked.max_tokens)
            if reply is None:
                return
            messages.append({"role": "assistant", "content": reply})


class OneOff(Client):
    """Sends long prompts that nobody will send again."""

    weight = 1
    wait_time = between(5, 15)

    @task
    def ask(self) -> None:
        """One of them."""
        prompt = text(
            f"locust one-off {next(numbers)}", self.environment.parsed_options.one_off_tokens
        )
        self.reply([{"role": "user", "content": prompt}], 1)


def _said_instead(response: Any) -> str:
    return f"HTTP {response.status_code}: {(response.text or 'no reply')[:200]}"


def pieces(lines: Iterator[bytes]) -> Iterator[str]:
    """The texts of a stream. Raises ValueError where it ends in an error or too early."""
    for line in lines:
        if line == b"data: [DONE]":
            return
        if not line.startswith(b"data: "):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise ValueError(f"the stream ended in an error: {chunk['error']}")
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if piece := delta.get("content") or delta.get("reasoning_content"):
                yield piece
    raise ValueError("the stream broke off before its end")
