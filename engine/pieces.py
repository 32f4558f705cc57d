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
