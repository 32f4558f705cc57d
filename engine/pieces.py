"""Long work on the engine thread in pieces, so that other models' steps get in between.

Work is a generator. It yields where others may go first: None to go on whenever it is its turn,
a future to go on once that is done, ``Weights`` to go on once so much memory is granted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

PASS_SECONDS = 0.05  # what a pass over a part of a prompt may take, half of the usual stall target


class Weights(NamedTuple):
    """Asks for memory: ``nbytes`` for the parameters of a model, before any is allocated."""

    nbytes: int


Piece = Future[Any] | Weights | None
Pieces = Generator[Piece, None, T]


def finish(pieces: Pieces[T], grant: Callable[[int], None] = lambda _: None) -> T:
    """The result of all pieces, one after the other.

    ``grant`` is told what weights take, and may raise.
    """
    try:
        while True:
            piece = next(pieces)
            if isinstance(piece, Future):
                piece.exception()  # waits; the work itself looks at the outcome
            elif piece is not None:
                grant(piece.nbytes)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        pieces.close()


def background(work: Callable[[], T]) -> Future[T]:
    """The result of ``work`` from a thread of its own, which must not make arrays."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    # A daemon: a download that hangs must not keep the process alive.
    threading.Thread(target=run, name="loading", daemon=True).start()
    return future


class Pace:
    """How many tokens of a prompt a pass takes, so that it lasts ``PASS_SECONDS``."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.chunk = 2 * least

    def took(self, count: int, seconds: float) -> None:
        """Learns from a pass; one that was cut short by the prompt's end says little."""
        if count == self.chunk:
            fit = int(count * PASS_SECONDS / max(seconds, 1e-6))
            self.chunk = max(self._least, min(2 * count, fit, self._most))
