"""The response object: what the request asked for, and how far the reply has come."""

from __future__ import annotations

import time
from typing import Any

from .errors import ApiError
from .generation import Usage
from .response_fields import ResponseRequest
from .response_input import Item

FINISHES = {"length": "incomplete"}  # all others are a whole reply
# The codes of a response's error that clients know; which of a server's faults it was is in
# the message.
SERVER_ERROR = "server_error"


def usage_dict(usage: Usage) -> dict[str, Any]:
    """Usage as the Responses dialect tells it.

    What was not cached before is afterwards, so it counts as written.
    """
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.prompt - usage.cached,
        },
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


class ResponseObject:
    """The object of one response; ``body`` is what it looks like at each stage."""

    def __init__(self, name: str, body: ResponseRequest, tier: str, sampling: Any) -> None:
        self.id = name
        self.created = time.time()
        self._fixed = _echo(body) | {
            "id": name,
            "object": "response",
            "created_at": int(self.created),
            "service_tier": tier,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }

    def running(self) -> dict[str, Any]:
        """While the reply is not there."""
        return self._body("in_progress", [])

    def ended(self, status: str, output: list[Item], usage: Usage) -> dict[str, Any]:
        """When the reply ended by itself, by its length, or by a cancellation."""
        body = self._body(status, output) | {"usage": usage_dict(usage)}
        if status == "incomplete":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "completed":
            body["completed_at"] = int(time.time())
        return body

    def failed(self, error: ApiError, output: list[Item]) -> dict[str, Any]:
        """When the server failed."""
        told = {"code": SERVER_ERROR, "message": error.message}
        return self._body("failed", output) | {"error": told}

    def _body(self, status: str, output: list[Item]) -> dict[str, Any]:
        return self._fixed | {"status": status, "output": output}


def _echo(body: ResponseRequest) -> dict[str, Any]:
    """The fields of the request as the object repeats them, and those that are null at first."""
    text = body.text
    reasoning = body.reasoning
    return {
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "store": body.stored,
        "text": {
            "format": (text.format if text else None) or {"type": "text"},
            "verbosity": (text.verbosity if text else None) or "medium",
        },
        "tool_choice": body.tool_choice or "auto",
        "tools": [_tool_echo(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


def _tool_echo(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None} | tool
