"""All configured models on one engine thread: which are loaded, and whose turn it is.

Models that have work get equal engine time, a load among them. A model is loaded in pieces when
a request asks for it; what was used least recently and is idle makes room for its weights.
Owned by the engine thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from engine.adapter_files import AdapterError
from engine.kv_memory import TenantPart
from engine.loader import LoadError
from engine.model_memory import ModelMemory, size
from engine.pieces import Piece, Pieces, Weights, finish

from .door import Hold
from .events import Event, FinishReason
from .info import ModelState
from .ledger import Ledger
from .live import Live
from .members import Change, Member
from .metrics import Gauges
from .neighbours import Neighbours
from .order import MOST_PASSED_OVER
from .request import Request
from .tenant import Tenant
from .turns import Turns

log = logging.getLogger("commons.engine")

LOAD = ""  # the name under which a load takes its turns; no model has it


class Load:
    """A model that is being loaded, as far as its pieces have come."""

    def __init__(self, member: Member, pieces: Pieces[Live]) -> None:
        self.member = member
        self.pieces = pieces
        self.piece: Piece = None
        self.granted = 0  # bytes of weights
        self.victims: list[Member] = []  # that leave to make room


class ModelPool:
    """What the worker drives, for several models; the first one is the main one and stays.

    ``open_model`` loads one in pieces. ``tell`` hears of every change; ``wake`` is called from
    other threads when there is something to do again.
    """

    def __init__(
        self,
        members: Iterable[Member],
        open_model: Callable[[Member], Pieces[Live]],
        memory: ModelMemory,
        tell: Callable[[Change], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.memory = memory
        self._open = open_model
        self._tell = tell
        self._wake = wake
        self._clock = clock
        self._turns: Turns[str] = Turns()
        self._ledger = Ledger()
        self._wanted: dict[str, None] = {}  # in the order in which they were asked for
        self._load: Load | None = None
        self._uses = 0

    def start(self) -> None:
        """Loads the models that stay loaded; others than the main one may fail.

        Raises LoadError, AdapterError for the main one.
        """
        first, *others = self.members.values()
        live = finish(self._open(first), self.memory.settle)
        self._loaded(first, live, self.memory.weights)
        for member in others:
            if member.config.keep_loaded:
                load = self._load = Load(member, self._open(member))
                while self._load is load:
                    if isinstance(load.piece, Future):
                        load.piece.exception()  # waits
                    self._advance()

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Divides the KV memory between ``tenants`` from now on; anybody else weighs 1.

        After ``start``, for before that it is not known how much there is.
        """
        self.memory.kv.configure(
            {t.name: TenantPart(t.weight, t.limits.cache_share) for t in tenants}
        )

    # requests

    def add(self, request: Request) -> None:
        """Accepts a request for a model, which its hold keeps loaded."""
        member = self.members[request.model]
        assert member.live is not None
        self._touch(member)
        member.live.scheduler.add(request)

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        """Ends a request with its model's next step; one that has ended is left alone."""
        for _, live in self._live():
            live.scheduler.abort(request_id, reason)

    def want(self, name: str, hold: Hold) -> None:
        """Loads a model for a request, or says at once why not."""
        member = self.members[name]
        wait = member.retry_at - self._clock()
        if member.failure is not None and wait > 0:
            failure = member.failure._replace(retry_after=wait)
            self._tell(Change(name, "refused", failure=failure, holds=(hold,)))
            return
        member.door.admit(hold)
        self._touch(member)
        if member.live is not None and not member.leaving:
            self._tell(Change(name, "held", member.live.facts, holds=(hold,)))
            return
        member.waiting.append(hold)
        self._want(member)

    def leave(self, name: str, hold: Hold) -> None:
        """A request lets go of its model: it was handed over, or is given up."""
        member = self.members[name]
        member.door.leave(hold)
        if hold in member.waiting:
            member.waiting.remove(hold)
        load = self._load
        if load is None or load.member is not member or member.waiting:
            return
        if isinstance(load.piece, Weights):  # it waits for others to leave, and for nobody's sake
            self._give_up(load)

    def unload(self, name: str) -> None:
        """Unloads a model as soon as it is idle; until then it takes nothing new."""
        member = self.members[name]
        if member.live is not None:
            self._send_away(member)
            if self._load is not None and member in self._load.victims:
                self._load.victims.remove(member)  # it goes, whatever becomes of the load

    # the worker's side

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has anything to do."""
        return bool(self._ready() or self._next_wanted() or self._departing())

    def step(self) -> list[Event]:
        """Does what is due for models that come and go, and the next turn of one that is there."""
        for member in self._departing():
            self._close(member)
        self._begin()
        ready = self._ready()
        if not ready:
            return []
        chosen = self._turns.choose(ready)
        began = self._clock()
        events: list[Event] = []
        if chosen == LOAD:
            self._advance()
        else:
            events = self._run(self.members[chosen], alone=len(ready) == 1)
        self._turns.charge(chosen, self._clock() - began)
        return events

    def picture(self) -> Mapping[str, Gauges]:
        """How all models are, for the gauges; the first one also shows what they share."""
        gauges = {name: member.gauges() for name, member in self.members.items()}
        used = sum(g.lent + g.owned + g.cached for g in gauges.values())
        limit = self.memory.kv.limit
        first = next(iter(gauges))
        return {
            name: g._replace(kv_limit=limit, free=max(0, limit - used) if name == first else 0)
            for name, g in gauges.items()
        }

    def states(self) -> list[ModelState]:
        """How all models are, for an operator."""
        loading = None if self._load is None else self._load.member
        return [m.state(loading=m is loading) for m in self.members.values()]

    # turns

    def _ready(self) -> list[str]:
        """Who has something to do."""
        ready = [name for name, member in self.members.items() if member.ready]
        if self._load is not None and self._can_go_on(self._load):
            ready.append(LOAD)
        return ready

    def _run(self, member: Member, *, alone: bool) -> list[Event]:
        """One turn of a model.

        Beside others it ends with no step under way: so each turn's time is its own, and the
        device does not compute one model's step while another one's prompt waits behind it.
        """
        live = member.live
        assert live is not None
        released = live.scheduler.releases
        events = live.scheduler.step(overlap=alone)
        while not alone and live.engine.busy:
            events += live.scheduler.step(overlap=False)
        if not live.scheduler.stalled:
            member.passed_over = 0
        self._look_around(live if live.scheduler.releases > released else None)
        return events

    def _look_around(self, released: Live | None = None) -> None:
        """Tells each model of the others; ``released`` has given memory back."""
        there = self._live()
        for member, live in there:
            if released is not None and released is not live:
                member.passed_over += live.scheduler.stalled
                live.scheduler.unblock()
        first = next((m for m, _ in there if m.passed_over > MOST_PASSED_OVER), None)
        for member, live in there:
            others = [other.scheduler for _, other in there if other is not live]
            live.scheduler.neighbours = Neighbours(
                rows=sum(other.running for other in others),
                seconds=sum(other.step_seconds for other in others),
                first=first not in (None, member),
            )

    # loads

    def _next_wanted(self) -> Member | None:
        """Whose load begins next, as soon as no other one is under way."""
        if self._load is not None:
            return None
        return next((m for n in self._wanted if (m := self.members[n]).live is None), None)

    def _begin(self) -> None:
        member = self._next_wanted()
        if member is None:
            return
        del self._wanted[member.name]
        if member.waiting:
            log.info("loading %s", member.name)
            self._load = Load(member, self._open(member))

    def _can_go_on(self, load: Load) -> bool:
        if isinstance(load.piece, Future):
            return load.piece.done()
        return not isinstance(load.piece, Weights) or self.memory.lacking(load.piece.nbytes) <= 0

    def _advance(self) -> None:
        """The next piece of the load."""
        load = self._load
        assert load is not None
        try:
            if isinstance(load.piece, Weights):
                load.granted = load.piece.nbytes
                self.memory.take(load.granted)
            load.piece = next(load.pieces)
            if isinstance(load.piece, Weights):
                self._make_room(load, load.piece.nbytes)
            elif isinstance(load.piece, Future):
                load.piece.add_done_callback(lambda _: self._wake())
            return
        except StopIteration as end:
            self._loaded(load.member, end.value, load.granted)
            return
        except (LoadError, AdapterError) as error:
            reason = str(error)
        except Exception:  # whatever it is, it is this model's trouble alone
            log.exception("loading %s failed", load.member.name)
            reason = "loading failed; the server's log says why"
        self._failed(load, reason)  # here the error, and what it refers to, is gone

    def _make_room(self, load: Load, need: int) -> None:
        """Sends away as many models as ``need`` bytes take: idle ones first, then by last use.

        Raises LoadError where that can never be enough.
        """
        may_go = [(m, live) for m, live in self._live() if not m.config.keep_loaded]
        lacking = self.memory.lacking(need)
        possible = sum(live.weights for _, live in may_go)
        if lacking > possible:
            raise LoadError(
                f"its weights take {size(need)}, and --memory leaves "
                f"{size(max(0, need - lacking + possible))} beside the models that stay loaded"
            )
        for member, live in sorted(may_go, key=lambda each: (each[0].taken, each[0].used)):
            if lacking <= 0:
                break
            lacking -= live.weights
            if not member.leaving:
                load.victims.append(member)
                self._send_away(member)

    def _loaded(self, member: Member, live: Live, granted: int) -> None:
        self._load = None
        live.scheduler.ledger = self._ledger  # what a tenant is served, all models serve
        if granted > live.weights:  # a draft that turned out to be of no use
            self.memory.give_back(granted - live.weights)
        self._touch(member)
        log.info("%s is loaded", member.name)
        self._tell(member.start(live))
        self._look_around()

    def _failed(self, load: Load, reason: str) -> None:
        self._load = None
        log.warning("%s cannot be loaded: %s", load.member.name, reason)
        if load.granted:
            self.memory.give_back(load.granted)
        self._tell(load.member.fail(reason, self._clock()))
        self._keep(load.victims)

    def _give_up(self, load: Load) -> None:
        self._load = None
        load.pieces.close()
        self._keep(load.victims)

    # comings and goings

    def _want(self, member: Member) -> None:
        if self._load is None or self._load.member is not member:
            self._wanted.setdefault(member.name)

    def _departing(self) -> list[Member]:
        return [m for m in self.members.values() if m.leaving and m.live and not m.taken]

    def _send_away(self, member: Member) -> None:
        member.door.close()
        member.leaving = True

    def _keep(self, members: Iterable[Member]) -> None:
        """Lets models stay that were to leave for a load that came to nothing."""
        for member in members:
            if member.live is not None and member.leaving:
                member.leaving = False
                self._wanted.pop(member.name, None)
                member.door.open()
                facts, holds = member.live.facts, member.take_waiting()
                self._tell(Change(member.name, "held", facts, holds=holds))

    def _close(self, member: Member) -> None:
        """Unloads a model that nobody has."""
        self.memory.give_back(member.close())
        log.info("%s is unloaded", member.name)
        self._tell(Change(member.name, "unloaded"))
        self._look_around()

    def _live(self) -> list[tuple[Member, Live]]:
        return [(m, m.live) for m in self.members.values() if m.live is not None]

    def _touch(self, member: Member) -> None:
        self._uses += 1
        member.used = self._uses
