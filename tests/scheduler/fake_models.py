"""Several models without MLX: engines on one clock and one budget, and loads in scripted pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from engine.budget import Memory
from engine.loader import LoadError
from engine.model_memory import ModelMemory
from engine.pieces import Weights
from scheduler.door import Door, Hold
from scheduler.events import Event, Finished
from scheduler.info import ModelConfig
from scheduler.live import Live, LoadedModel
from scheduler.members import Change, Member
from scheduler.pool import ModelPool
from scheduler.request import Request
from scheduler.scheduler import Scheduler

from .fakes import FakeEngine

KV, WEIGHTS = 1000, 100  # bytes; a token of KV is one, a model's weights are WEIGHTS


@dataclass(eq=False)
class ModelEngine(FakeEngine):
    """One of several engines: the world has the clock, the log and the budget."""

    name: str = ""
    world: World | None = None
    closed: bool = False
    token_bytes: int = 1

    @property
    def now(self) -> float:  # type: ignore[override]
        return self.world.now if self.world else 0.0

    @now.setter
    def now(self, value: float) -> None:
        if self.world:
            self.world.now = value

    @property
    def used(self) -> int:
        """Tokens of all models' rows: they share the budget."""
        return sum(len(r.tokens) for e in self.world.engines.values() for r in e.rows)

    @property
    def own(self) -> int:
        return sum(len(r.tokens) for r in self.rows)

    @property
    def forest(self) -> SimpleNamespace:
        return SimpleNamespace(evicted_tokens=0)

    def memory(self) -> Memory:
        return Memory(0, self.own, 0, 0)

    def submit(self, rows, left=None) -> None:
        self.world.log.append(f"{self.name} step")
        super().submit(rows, left)

    def prefill(self, row, most: int) -> int:
        self.world.log.append(f"{self.name} prefill")
        return super().prefill(row, most)

    def close(self) -> None:
        assert not self.rows
        self.closed = True
        del self.world.engines[self.name]
        self.world.log.append(f"{self.name} closed")


@dataclass(eq=False)
class World:
    """A pool over the models ``names``, the first of which is the main one.

    ``script`` has for each model the pieces of its load: a float is a piece that takes so many
    seconds, an exception ends it, everything else is yielded.
    """

    names: tuple[str, ...]
    room: int = 10  # models that fit
    kept: frozenset[str] = frozenset()
    budget: int = KV
    now: float = 0.0
    weights: dict[str, int] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)  # seconds of a decode step
    unused: dict[str, int] = field(default_factory=dict)  # bytes of weights asked for in vain
    script: dict[str, list] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    engines: dict[str, ModelEngine] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    wakes: int = 0

    def __post_init__(self) -> None:
        self.memory = ModelMemory(self.room * WEIGHTS + KV, KV, several=True)
        stay = {self.names[0], *self.kept}
        configs = [ModelConfig(name, name, keep_loaded=name in stay) for name in self.names]
        members = [Member(config, Door()) for config in configs]
        self.pool = ModelPool(
            members, self.open, self.memory, self.changes.append, self.wake, lambda: self.now
        )
        self.pool.start()
        self.log.clear()

    def wake(self) -> None:
        self.wakes += 1

    def open(self, member: Member):
        name = member.name
        weights = self.weights.get(name, WEIGHTS)
        yield Weights(weights + self.unused.get(name, 0))
        for piece in self.script.get(name, []):
            self.log.append(f"{name} piece")
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, float):
                self.now += piece
                piece = None
            yield piece
        engine = self.engines[name] = ModelEngine(
            budget=self.budget,
            decode_cost=self.costs.get(name, 0.01),
            now=self.now,
            name=name,
            world=self,
        )
        scheduler = Scheduler(engine, clock=lambda: self.now)
        return Live(scheduler, engine, weights, LoadedModel(None, None, self.budget))

    # what the event loop does

    def want(self, name: str) -> Hold:
        """Takes a hold on a model, which may have to be loaded."""
        hold = Hold()
        if not self.pool.members[name].door.enter(hold):
            self.pool.want(name, hold)
        return hold

    def told(self, hold: Hold) -> Change | None:
        """What the holder was told; None: nothing yet."""
        found = [c for c in self.changes if hold in c.holds]
        assert len(found) <= 1
        return found[0] if found else None

    def request(self, model: str, id: str, prompt: int = 3, tokens: int = 4) -> None:
        """Hands over a request for a loaded model."""
        hold = Hold()
        assert self.pool.members[model].door.enter(hold), f"{model} is not loaded"
        first = 1000 * (1 + len(self.log) % 7)
        self.pool.add(Request(id, tuple(range(first, first + prompt)), tokens, model=model))
        self.pool.leave(model, hold)

    def loaded(self) -> list[str]:
        return [name for name, m in self.pool.members.items() if m.live is not None]

    # what the worker does

    def run(self, most: int = 10_000) -> list[Event]:
        """Steps until there is nothing to do."""
        events: list[Event] = []
        for _ in range(most):
            if not self.pool.has_work:
                return events
            events += self.pool.step()
        raise AssertionError("it never comes to rest")

    def until(self, condition, most: int = 10_000) -> list[Event]:
        """Steps until ``condition`` holds."""
        events: list[Event] = []
        for _ in range(most):
            if condition():
                return events
            assert self.pool.has_work, "it came to rest before"
            events += self.pool.step()
        raise AssertionError("it does not come about")


def ends(events: list[Event]) -> dict[str, str]:
    """How each request ended."""
    finished = [e for e in events if isinstance(e, Finished)]
    assert len({e.request_id for e in finished}) == len(finished)
    return {e.request_id: e.reason for e in finished}


def broken(why: str = "no weights") -> LoadError:
    return LoadError(why)
