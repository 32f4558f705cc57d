"""What the scheduler needs of an engine: the seam at which tests put one without a model."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

from cache.lease import Hit
from cache.loan import ANYBODY, Borrower
from engine.decoding import Outcome
from engine.rows import Row
from engine.sampling import RowSampling
from engine.variant import BASE, Variant


class EngineLike(Protocol):
    """One model's engine; its methods say more."""

    vocab_size: int
    batchable: bool

    @property
    def busy(self) -> bool: ...
    def fits(self, tokens: int) -> bool: ...
    def lookup(
        self, tokens: array[int], variant: Variant = BASE, borrower: Borrower = ANYBODY
    ) -> Hit: ...
    def admit(
        self,
        request_id: str,
        tokens: array[int],
        sampling: RowSampling,
        boundaries: Sequence[int] = (),
        variant: Variant = BASE,
        borrower: Borrower = ANYBODY,
    ) -> Row | None: ...
    def mark(self, row: Row, position: int) -> None: ...
    def prefill(self, row: Row, most: int) -> int: ...
    def make_room(self, row: Row) -> bool: ...
    def submit(self, rows: Sequence[Row], left: Sequence[int] | None = None) -> None: ...
    def collect(self) -> list[Outcome]: ...
    def release(self, row: Row) -> None: ...
