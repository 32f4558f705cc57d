"""Bodies of the shape that Claude Code sends, for a conversation in which tools are called."""

from __future__ import annotations

import random
from typing import Any

from .texts import names, prose, schema

ROUTE = "/v1/messages?beta=true"
BETAS = (
    "claude-code-20250219",
    "interleaved-thinking-2025-05-14",
    "context-management-2025-06-27",
    "prompt-caching-scope-2026-01-05",
    "advanced-tool-use-2025-11-20",
    "effort-2025-11-24",
    "fine-grained-tool-streaming-2025-05-14",
)
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": ",".join(BETAS),
    "x-app": "cli",
}
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
TOOLS = 24


def tools() -> list[dict[str, Any]]:
    """The tools, which are the same in every request."""
    return [
        {"name": name, "description": prose(24, name), "input_schema": schema(name)}
        for name in names(TOOLS)
    ]


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def reminder(words: int, seed: object) -> str:
    return f"<system-reminder>\n{prose(words, seed)}\n</system-reminder>\n"


class ClaudeCode:
    """A conversation; ``agent`` decides what it is about, not how its prompt begins."""

    def __init__(self, model: str, agent: int = 0) -> None:
        self.model = model
        self._agent = agent
        self._rng = random.Random(agent)
        self._turn = 0
        asked = prose(20, ("question", agent))
        first = [text(reminder(120, "project")), text(asked)]
        self.messages: list[dict[str, Any]] = [
            {"role": "user", "content": first},
            {"role": "system", "content": prose(30, "skills")},
        ]

    def body(self, **more: Any) -> dict[str, Any]:
        """The next request: the billing header is another one, and the mark is at the end."""
        return {
            "model": self.model,
            "max_tokens": 32000,
            "system": self._system(),
            "tools": tools(),
            "messages": self._marked(),
            "thinking": {"type": "adaptive"},
            "output_config": {"effort": "high"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "metadata": {"user_id": f"user_{self._agent}_session_{self._agent}"},
            "stream": True,
        } | more

    def answer(self, content: list[dict[str, Any]], calls: int = 2) -> None:
        """Goes on as if the reply had called tools: their results, and a reminder."""
        self._turn += 1
        made = [self._call(i) for i in range(calls)]
        kept = [block for block in content if block["type"] != "text" or block["text"]]
        self.messages.append({"role": "assistant", "content": [*kept, *made]})
        results = [
            {"type": "tool_result", "tool_use_id": call["id"], "content": self._result(call["id"])}
            for call in made
        ]
        self.messages.append(
            {"role": "user", "content": [*results, text(reminder(8, (self._agent, self._turn)))]}
        )

    def _system(self) -> list[dict[str, Any]]:
        noise = self._rng.getrandbits(20)
        header = f"x-anthropic-billing-header: cc_version=2.1.330.{noise:x}; cc_entrypoint=cli;"
        return [
            text(f"{header} cch={noise:05x};"),
            text("You are a careful assistant for work on code.") | MARK,
            text(prose(400, "system")) | MARK,
        ]

    def _marked(self) -> list[dict[str, Any]]:
        """The messages with the cache's mark at the last block that can have one."""
        last = self.messages[-1]
        if isinstance(last["content"], str):
            return self.messages
        blocks = [*last["content"][:-1], last["content"][-1] | MARK]
        return [*self.messages[:-1], last | {"content": blocks}]

    def _call(self, index: int) -> dict[str, Any]:
        edits = [{"old_text": "a", "new_text": prose(4, (self._agent, self._turn, index))}]
        return {
            "type": "tool_use",
            "id": f"toolu_{self._agent}_{self._turn}_{index}",
            "name": names(TOOLS)[index],
            "input": {"path": f"src/{self._turn}/{index}.py", "edits": edits},
        }

    def _result(self, name: str) -> list[dict[str, Any]] | str:
        said = prose(25, (self._agent, name))
        return [text(said)] if name.endswith("1") else said
