"""Plays a conversation against a server and tells what each turn's prompt cost."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import httpx

from . import claude_code, opencode


class Turn(NamedTuple):
    """Tokens of a turn's prompt, and those of them that were reused."""

    prompt: int
    cached: int

    @property
    def reused(self) -> float:
        return self.cached / self.prompt


def claude_code_turns(
    http: httpx.Client, model: str, turns: int, agent: int = 0, **more: Any
) -> list[Turn]:
    """A conversation through Anthropic's dialect; ``more`` replaces fields of the bodies."""
    talk, seen = claude_code.ClaudeCode(model, agent), []
    for _ in range(turns):
        body = talk.body(**({"max_tokens": 24} | more | {"stream": False}))
        response = http.post(claude_code.ROUTE, headers=claude_code.HEADERS, json=body)
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
        cached = usage["cache_read_input_tokens"]
        prompt = usage["input_tokens"] + cached + usage["cache_creation_input_tokens"]
        seen.append(Turn(prompt, cached))
        talk.answer(response.json()["content"])
    return seen


def opencode_turns(
    http: httpx.Client, model: str, turns: int, agent: int = 0, **more: Any
) -> list[Turn]:
    """A conversation through OpenAI's dialect, streamed."""
    talk, seen = opencode.OpenCode(model, agent), []
    for _ in range(turns):
        text, usage = "", {}
        body = talk.body(**({"max_tokens": 24} | more))
        with http.stream("POST", opencode.ROUTE, json=body) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    usage = chunk.get("usage") or usage
                    for choice in chunk["choices"]:
                        text += choice["delta"].get("content") or ""
        seen.append(Turn(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
        talk.answer(text)
    return seen
