"""A model's parameters: their types, their size, and how they come into memory. Engine thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from . import device
from .pieces import Pieces

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
HALF = (mx.float16, mx.bfloat16)
PIECE_SECONDS = 0.025  # a quarter of the usual stall target
FIRST_GROUP = 16 << 20  # bytes; until it is known how fast they come
LEAST_GROUP = 1 << 20


def nbytes(network: nn.Module) -> int:
    """Bytes of all parameters, in memory or not yet."""
    return sum(int(value.nbytes) for _, value in tree_flatten(network.parameters()))


def settle_dtype(network: nn.Module, dtype: str | None, progress: Callable[[str], None]) -> None:
    """Casts as asked, lazily; says so where the stored type is a slow one."""
    parameters = dict(tree_flatten(network.parameters()))
    plain = {name for name in parameters if f"{name.rpartition('.')[0]}.scales" not in parameters}
    # A quantised layer's own bias is an ordinary array beside the packed ones.
    plain |= {name for name in parameters if name.endswith(".bias")}
    if dtype is not None:
        # Some arrays must keep their precision; the model knows which.
        may_cast = getattr(network, "cast_predicate", lambda _: True)

        def cast(name: str, value: mx.array) -> mx.array:
            fit = name in plain and mx.issubdtype(value.dtype, mx.floating) and may_cast(name)
            return value.astype(DTYPES[dtype]) if fit else value

        network.update(tree_map_with_path(cast, network.parameters()))
    elif device.describe().backend == "cpu":
        half = {parameters[n].dtype for n in plain if parameters[n].ndim > 1} & set(HALF)
        if half:
            stored = str(half.pop()).removeprefix("mlx.core.")
            progress(
                f"the weights are {stored}, which is slow on this device: "
                "--dtype float32 is several times faster at twice the memory"
            )


def bring_in(network: nn.Module, clock: Callable[[], float] = time.perf_counter) -> Pieces[None]:
    """Reads the parameters into memory, so many at a time as take ``PIECE_SECONDS``.

    An array that is larger than that is a piece of its own.
    """
    size = FIRST_GROUP
    left = iter([value for _, value in tree_flatten(network.parameters())])
    while group := _take(left, size):
        began = clock()
        mx.eval(group)
        seconds = max(clock() - began, 1e-4)
        total = sum(value.nbytes for value in group)
        # At most twice as much as the last time: what lay in the page cache comes faster.
        size = max(LEAST_GROUP, min(2 * size, int(total / seconds * PIECE_SECONDS)))
        yield None


def _take(values: Iterator[mx.array], size: int) -> list[mx.array]:
    """The next values of ``size`` bytes together, or one more than that."""
    taken: list[mx.array] = []
    while size > 0 and (value := next(values, None)) is not None:
        taken.append(value)
        size -= value.nbytes
    return taken
