"""LoRA adapters of one model: rows of different adapters, and of none, in one step.

The base runs once for the whole batch; each adapted module then adds, for the rows that have an
adapter, their own low-rank update, gathered from all adapters stacked by rank (as Punica and
S-LoRA do: Chen et al., 2023; Sheng et al., 2023). Owned by the engine thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from .adapter_files import EMBEDDING, EXPERTS, LowRank

SORTED_FROM = 64  # tokens times experts from which on mlx-lm's expert blocks sort their input


class Stack:
    """The updates of one module that have the same rank and types, one on top of the other.

    ``a`` is [adapters, ..., in, rank], ``b`` [adapters, ..., rank, out] and ``scale``
    [adapters], in memory of just their size; ``names`` says whose place is which.
    """

    def __init__(self, name: str, update: LowRank) -> None:
        self.names: tuple[str, ...] = (name,)
        self.a = update.a[None]
        self.b = update.b[None]
        self.scale = mx.array([update.scale])

    @property
    def nbytes(self) -> int:
        """Bytes of all updates."""
        return int(self.a.nbytes + self.b.nbytes + self.scale.nbytes)

    def add(self, name: str, update: LowRank) -> None:
        """Puts one more update on top."""
        self.names = (*self.names, name)
        self.a = mx.concatenate([self.a, update.a[None]])
        self.b = mx.concatenate([self.b, update.b[None]])
        self.scale = mx.concatenate([self.scale, mx.array([update.scale])])
        mx.eval(self.a, self.b, self.scale)

    def remove(self, name: str) -> None:
        """Takes one of several updates out; the others move together."""
        keep = [i for i, other in enumerate(self.names) if other != name]
        self.names = tuple(self.names[i] for i in keep)
        at = mx.array(keep)
        self.a, self.b, self.scale = self.a[at], self.b[at], self.scale[at]
        mx.eval(self.a, self.b, self.scale)


class Selection(NamedTuple):
    """The rows of a step that use a stack: their places in the batch (None: all), their slots."""

    rows: mx.array | None
    slots: mx.array


class AdapterPlan:
    """Which adapter each row of a step has; built once a step, for all modules."""

    def __init__(self, rows: Sequence[str | None]) -> None:
        self.rows = tuple(rows)
        self.order: mx.array | None = None  # of the sorted tokens of the current expert block
        self._selections: dict[tuple[str, ...], Selection | None] = {}

    def select(self, names: tuple[str, ...]) -> Selection | None:
        """The rows that have one of ``names``; None where there is none."""
        # Most modules are adapted by the same adapters, so that few are ever worked out.
        if names not in self._selections:
            slot = {name: i for i, name in enumerate(names)}
            places = [i for i, row in enumerate(self.rows) if row in slot]
            made = None
            if places:
                slots = mx.array([slot[name] for name in self.rows if name in slot], mx.uint32)
                made = Selection(None if len(places) == len(self.rows) else mx.array(places), slots)
            self._selections[names] = made
        return self._selections[names]


class Target:
    """All updates of one module, in stacks."""

    def __init__(self) -> None:
        self.stacks: dict[tuple[int, mx.Dtype, mx.Dtype], Stack] = {}

    def add(self, name: str, update: LowRank) -> None:
        """Keeps one adapter's update."""
        key = (update.rank, update.a.dtype, update.b.dtype)
        if key in self.stacks:
            self.stacks[key].add(name, update)
        else:
            self.stacks[key] = Stack(name, update)

    def remove(self, name: str) -> None:
        """Lets go of one adapter's update."""
        for key, stack in list(self.stacks.items()):
            if stack.names == (name,):
                del self.stacks[key]
            elif name in stack.names:
                stack.remove(name)

    def chosen(self, plan: AdapterPlan) -> Iterator[tuple[Stack, Selection]]:
        """The stacks that rows of ``plan`` use."""
        for stack in self.stacks.values():
            selection = plan.select(stack.names)
            if selection is not None:
                yield stack, selection


class Current:
    """The plan of the step whose graph is being built; None outside, and without adapters."""

    def __init__(self) -> None:
        self.plan: AdapterPlan | None = None


class Adapted(nn.Module):  # type: ignore[misc]  # MLX has no types here
    """Stands in a model where ``base`` was."""

    def __init__(self, base: nn.Module, target: Target, current: Current) -> None:
        super().__init__()
        self.base = base
        self._target = target
        self._current = current

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # some models look at a layer's weight
            return getattr(super().__getattr__("base"), name)

    def chosen(self) -> list[tuple[Stack, Selection]]:
        """What the step's rows add to the base's output."""
        plan = self._current.plan
        return [] if plan is None else list(self._target.chosen(plan))

    def rows(self, x: mx.array) -> mx.array:
        """``x`` [..., dim] as [rows, tokens of a row, dim]."""
        assert self._current.plan is not None
        return x.reshape(len(self._current.plan.rows), -1, x.shape[-1])


class AdaptedLinear(Adapted):
    """A projection, quantised or not."""

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        for stack, (rows, slots) in self.chosen():
            own = _pick(self.rows(x), rows)
            z = mx.gather_mm(own, stack.a, rhs_indices=slots)
            y = _add(y, rows, _scaled(mx.gather_mm(z, stack.b, rhs_indices=slots), stack, slots))
        return y


class AdaptedEmbedding(Adapted):
    """The token embedding, which with tied weights is the last projection, too."""

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        for stack, (rows, slots) in self.chosen():
            own = _pick(self.rows(x[..., None])[..., 0], rows)
            z = stack.a[slots[:, None], own]
            y = _add(y, rows, _scaled(mx.gather_mm(z, stack.b, rhs_indices=slots), stack, slots))
        return y

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits from hidden states."""
        y: mx.array = self.base.as_linear(x)
        for stack, (rows, slots) in self.chosen():
            own = _pick(self.rows(x), rows)
            z = mx.gather_mm(own, stack.b.swapaxes(1, 2), rhs_indices=slots)
            z = mx.gather_mm(z, stack.a.swapaxes(1, 2), rhs_indices=slots)
            y = _add(y, rows, _scaled(z, stack, slots))
        return y


class AdaptedExperts(Adapted):
    """The projections of many experts; tokens may come sorted by expert."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y: mx.array = self.base(x, indices, sorted_indices=sorted_indices)
        for stack, (rows, slots) in self.chosen():
            slot, scale = self._by_token(indices, stack, rows, slots, sorted_indices)
            experts = stack.a.shape[1]
            at = slot * experts + indices
            z = mx.gather_mm(x, stack.a.flatten(0, 1), rhs_indices=at)
            z = mx.gather_mm(z, stack.b.flatten(0, 1), rhs_indices=at)
            y = y + (scale[..., None, None] * z).astype(y.dtype)
        return y

    def _by_token(
        self,
        indices: mx.array,
        stack: Stack,
        rows: mx.array | None,
        slots: mx.array,
        sorted_indices: bool,
    ) -> tuple[mx.array, mx.array]:
        """Slot and scale for each entry of ``indices``; scale 0 for rows without an adapter."""
        plan = self._current.plan
        assert plan is not None
        slot = slots.astype(indices.dtype)
        scale = stack.scale[slots]
        if rows is not None:
            slot = mx.zeros((len(plan.rows),), indices.dtype).at[rows].add(slot)
            scale = mx.zeros((len(plan.rows),), scale.dtype).at[rows].add(scale)
        if sorted_indices:
            if len(plan.rows) == 1:
                return slot, scale
            assert plan.order is not None
            row = plan.order // (indices.size // len(plan.rows))
            return slot[row], scale[row]
        tail = (1,) * (indices.ndim - 1)
        if indices.shape[0] != len(plan.rows):  # tokens of all rows in one run
            each = indices.shape[0] // len(plan.rows)
            slot, scale = mx.repeat(slot, each), mx.repeat(scale, each)
        return slot.reshape(-1, *tail), scale.reshape(-1, *tail)


class AdaptedBlock(Adapted):
    """A block of experts: it sorts tokens by expert, and tells its projections how."""

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        plan = self._current.plan
        if plan is not None and indices.size >= SORTED_FROM:
            plan.order = mx.argsort(indices.flatten())
        y: mx.array = self.base(x, indices)
        if plan is not None:
            plan.order = None
        return y


class Adapters:
    """The adapters that are in memory beside one model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._current = Current()
        self._targets: dict[str, Target] = {}
        self.modules: dict[str, Any] = {name: m for name, m in model.named_modules() if name}
        self.names: set[str] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of all updates."""
        return sum(s.nbytes for t in self._targets.values() for s in t.stacks.values())

    def add(self, name: str, updates: Mapping[str, LowRank]) -> None:
        """Makes an adapter usable; its modules are wrapped where they are not yet."""
        assert name not in self.names
        for path, update in updates.items():
            if path not in self._targets:
                self._targets[path] = Target()
                self._wrap(path)
            self._targets[path].add(name, update)
        self.names.add(name)

    def remove(self, name: str) -> None:
        """Lets go of an adapter, which no row has any more."""
        self.names.remove(name)
        for target in self._targets.values():
            target.remove(name)

    @contextmanager
    def using(self, rows: Sequence[str | None]) -> Iterator[None]:
        """While a graph is built: the adapter of each row of the batch, None for none."""
        self._current.plan = AdapterPlan(rows) if any(rows) else None
        try:
            yield
        finally:
            self._current.plan = None

    def _wrap(self, path: str) -> None:
        base = self.modules[path]
        kind: type[Adapted] = AdaptedLinear
        if isinstance(base, EMBEDDING):
            kind = AdaptedEmbedding
        elif isinstance(base, EXPERTS):
            kind = AdaptedExperts
            self._wrap_block(path.rpartition(".")[0])
        self._replace(path, kind(base, self._targets[path], self._current))

    def _wrap_block(self, path: str) -> None:
        block = self.modules[path]
        assert isinstance(block, SwitchGLU | SwitchMLP)
        if path not in self._targets:
            self._targets[path] = Target()
            self._replace(path, AdaptedBlock(block, self._targets[path], self._current))

    def _replace(self, path: str, module: Adapted) -> None:
        parts = path.split(".")
        # A wrapped block has its projections one level further down.
        for i in range(len(parts) - 1, 0, -1):
            above = ".".join(parts[:i])
            if above in self._targets and above != path:
                parts.insert(i, "base")
        self._model.update_modules(tree_unflatten([(".".join(parts), module)]))


def _pick(x: mx.array, rows: mx.array | None) -> mx.array:
    return x if rows is None else x[rows]


def _scaled(z: mx.array, stack: Stack, slots: mx.array) -> mx.array:
    return stack.scale[slots][:, None, None] * z


def _add(y: mx.array, rows: mx.array | None, z: mx.array) -> mx.array:
    """``y`` with ``z`` [rows, tokens, dim] added to those rows."""
    if rows is None:
        return y + z.reshape(y.shape).astype(y.dtype)
    flat = y.reshape(-1, z.shape[1], y.shape[-1])
    return flat.at[rows].add(z.astype(y.dtype)).reshape(y.shape)
