"""Requests of the shapes that Codex 0.169 and 0.171 send to ``/v1/responses``, made up here."""

from __future__ import annotations

import random
from typing import Any

Item = dict[str, Any]

INSTRUCTIONS = "You are a coding agent running in a terminal. Be precise, safe and helpful. "
WORDS = [
    *("path", "file", "command", "output", "patch", "directory", "sandbox", "approval", "network"),
    *("branch", "commit", "test", "module", "function", "error", "result", "session", "timeout"),
]


def prose(count: int, seed: int) -> str:
    """A text of its own for every seed."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


def tools() -> list[Item]:
    """Plain and namespaced functions, a freeform tool, and one that only OpenAI can run."""
    names = ("exec_command", "write_stdin", "update_plan", "view_image")
    hosted = {"type": "web_search", "external_web_access": False}
    return [*(_function(n, i) for i, n in enumerate(names)), _patch(), _namespace(), hosted]


def _function(name: str, seed: int) -> Item:
    fields = {
        word: {"type": "string", "description": prose(6, seed)} for word in ("cmd", "workdir")
    }
    return {
        "type": "function",
        "name": name,
        "description": prose(20, seed),
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": fields,
            "required": ["cmd"],
            "additionalProperties": False,
        },
    }


def _patch() -> Item:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" /.+/s'}
    return {
        "type": "custom",
        "name": "apply_patch",
        "description": prose(20, 90),
        "format": grammar,
    }


def _namespace() -> Item:
    return {
        "type": "namespace",
        "name": "multi_agent",
        "description": "Tools for spawning and managing agents.",
        "tools": [_function(name, 50 + i) for i, name in enumerate(("spawn_agent", "close_agent"))],
    }


def message(role: str, *texts: str) -> Item:
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text} for text in texts]
    return {"type": "message", "role": role, "content": content}


def opening(task: str, folder: str = "/src") -> list[Item]:
    """What a session in a folder begins with."""
    writable = f"{prose(60, 1)} The writable root is `{folder}`."
    rules = f"# AGENTS.md\n\n<INSTRUCTIONS>\n{prose(500, 2)}\n</INSTRUCTIONS>"
    place = f"<environment_context>\n  <cwd>{folder}</cwd>\n</environment_context>"
    return [
        message("developer", f"<permissions instructions>{writable}</permissions instructions>"),
        message("user", rules),
        message("user", place),
        message("user", task),
    ]


def calls(turn: int) -> list[Item]:
    """Two calls made at once, one of them within a namespace, and what came of them."""
    first, second = f"call_{turn}a", f"call_{turn}b"
    return [
        {
            "type": "function_call",
            "name": "exec_command",
            "arguments": '{"cmd":"ls"}',
            "call_id": first,
        },
        {
            "type": "function_call",
            "name": "close_agent",
            "namespace": "multi_agent",
            "arguments": '{"cmd":""}',
            "call_id": second,
        },
        {"type": "function_call_output", "call_id": first, "output": prose(1, turn)},
        {"type": "function_call_output", "call_id": second, "output": prose(1, turn)},
    ]


def body(model: str, items: list[Item], *, as_item: bool = False, **more: Any) -> Item:
    """A request for the next turn; Codex 0.171 has its instructions in an item, ``as_item``."""
    instructions = INSTRUCTIONS + prose(2000, 3)
    return {
        "model": model,
        **({} if as_item else {"instructions": instructions}),
        "input": [message("developer", instructions), *items] if as_item else items,
        "tools": tools(),
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
        "client_metadata": {"x-codex-installation-id": "7c2e"},
        **more,
    }


def kept(item: Item) -> Item:
    """An output item as the client sends it back: without its id, thoughts sealed."""
    left = {name: value for name, value in item.items() if name not in ("id", "status")}
    if item["type"] == "message":
        text = item["content"][0]["text"]
        return left | {"content": [{"type": "output_text", "text": text}]}
    if item["type"] == "reasoning":
        return left | {"content": None}
    return left
