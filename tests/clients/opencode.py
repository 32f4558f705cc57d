"""Chat bodies of the shape that OpenCode sends, for a conversation in which tools are called."""

from __future__ import annotations

import json
import random
from typing import Any

from .texts import names, prose, schema, shuffled

ROUTE = "/v1/chat/completions"
TOOLS = 12


class OpenCode:
    """A conversation; the keys of its tools' schemas come in another order every time."""

    def __init__(self, model: str, agent: int = 0) -> None:
        self.model = model
        self._agent = agent
        self._rng = random.Random(agent)
        self._turn = 0
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": prose(500, "system")},
            {"role": "user", "content": [{"type": "text", "text": prose(20, ("ask", agent))}]},
        ]

    def body(self, **more: Any) -> dict[str, Any]:
        """The next request."""
        return {
            "model": self.model,
            "max_tokens": 32000,
            "temperature": 0,
            "messages": self.messages,
            "tools": [self._tool(name) for name in names(TOOLS)],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
        } | more

    def answer(self, content: str, calls: int = 2) -> None:
        """Goes on as if the reply had called tools: their results."""
        self._turn += 1
        made = [self._call(i) for i in range(calls)]
        self.messages.append({"role": "assistant", "content": content, "tool_calls": made})
        for call in made:
            said = prose(25, call["id"])
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": said})

    def _tool(self, name: str) -> dict[str, Any]:
        parameters = shuffled(schema(name), self._rng)
        function = {"name": name, "description": prose(24, name), "parameters": parameters}
        return {"type": "function", "function": function}

    def _call(self, index: int) -> dict[str, Any]:
        arguments = json.dumps({"path": f"src/{self._turn}.py", "edits": []})
        function = {"name": names(TOOLS)[index], "arguments": arguments}
        name = f"call_{self._agent}_{self._turn}_{index}"
        return {"id": name, "type": "function", "function": function}
