"""Compiles a grammar in a process that can be killed: a script, which reads it from its input.

Prints what is wrong with it. Some few lines of a schema can keep the compiler busy for hours, and
a thread of the server's own process could not be stopped.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MOST_CPU = 0.6  # seconds; a grammar from a person's hand takes some milliseconds
MOST_WALL = 5.0  # seconds, where the machine is busy otherwise
MOST_BYTES = 4 << 30  # of address space
TOO_COSTLY = "it takes too long to compile"

# About 10 ms for one mask and 50 MB for one grammar, whatever its author thought of. What exceeds
# that makes the matcher fail, and with it its row alone.
LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    precompute_large_lexemes=False,  # whose time would depend on the vocabulary
    verbose_errors=False,
)


def fault(source: str) -> str:
    """What is wrong with a grammar; nothing where it compiles in time. On a worker thread."""
    script = Path(__file__)
    try:
        tried = subprocess.run(
            [sys.executable, "-I", str(script)],
            input=source.encode(),
            capture_output=True,
            timeout=MOST_WALL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return TOO_COSTLY
    return TOO_COSTLY if tried.returncode else tried.stdout.decode("utf-8", "replace")


def main() -> None:
    """Ends by a signal where it takes too much of the machine."""
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere, address space says nothing
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    source = sys.stdin.buffer.read().decode()
    matcher = LLMatcher(LLTokenizer("byte"), source, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    sys.stdout.write(matcher.get_error())


if __name__ == "__main__":
    main()
