"""What each turn of a conversation that calls tools computes anew, and what it reuses.

``python -m deploy.loadtest.turn_reuse``: models with random weights, one with plain layers and
one with recurrent ones, whose template leaves earlier thoughts out of the prompt as Qwen3's does.
The conversations have the shapes that agents' clients send.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httpx
from rich.console import Console
from rich.table import Table

from tests.clients.thinking import thinking_dir
from tests.clients.turns import Turn, claude_code_turns, opencode_turns
from tests.server.process import Server

LAYERS = {"plain": "qwen3", "recurrent": "qwen3_next"}
PATIENCE = 120.0  # seconds for one turn

Play = Callable[[httpx.Client, int], list[Turn]]


class Talk(NamedTuple):
    """A kind of conversation."""

    name: str
    play: Play


TALKS = (
    Talk("Claude Code, thinking", lambda http, turns: claude_code_turns(http, "m", turns)),
    Talk(
        "Claude Code, not thinking",
        lambda http, turns: claude_code_turns(
            http, "m", turns, agent=1, thinking={"type": "disabled"}
        ),
    ),
    Talk("OpenCode", lambda http, turns: opencode_turns(http, "m", turns)),
)


def rows(layers: str, turns: int, options: Sequence[str]) -> list[tuple[str, list[Turn]]]:
    """The turns of every kind of conversation, on a server of its own for each sort of layers."""
    path = str(thinking_dir(LAYERS[layers]))
    with (
        Server("--model", path, "--served-model-name", "m", *options) as server,
        httpx.Client(base_url=server.ready().url, timeout=PATIENCE) as http,
    ):
        return [(talk.name, talk.play(http, turns)) for talk in TALKS]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="prompt tokens reused by turn")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument(
        "--no-normalise-prompts", action="store_true", help="leave noise in the prompts"
    )
    told = parser.parse_args()
    options = ["--no-normalise-prompts"] if told.no_normalise_prompts else []
    table = Table("layers", "conversation", *(str(turn + 1) for turn in range(told.turns)))
    for layers in LAYERS:
        for name, played in rows(layers, told.turns, options):
            shares = [f"{turn.reused:.1%}\n{turn.cached}/{turn.prompt}" for turn in played]
            table.add_row(layers, name, *shares)
    Console(width=max(100, 40 + 12 * told.turns)).print(table)


if __name__ == "__main__":
    main()
