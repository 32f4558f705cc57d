"""What tenants have used of their limits: requests and tokens by the minute, requests at once.

On the event loop, where a reservation is one step that nothing interrupts. Knows no HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from .bucket import Bucket
from .tenant import Limits, Tenant

LimitName = Literal["requests", "tokens", "concurrent", "queued"]
LIMITS: tuple[LimitName, ...] = get_args(LimitName)

LEAST_WAIT, MOST_WAIT = 1.0, 60.0  # seconds, where the end of others is waited for
RECENT = 0.2  # weight of the last value in a mean


class OverLimit(Exception):
    """A tenant has used up ``limit``; the text may be shown to the client.

    ``retry_after`` is in seconds: exact for what is refilled by the minute, what others took
    for places. None: never, for more is asked for at once than the tenant may have.
    """

    def __init__(self, limit: LimitName, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class Level(NamedTuple):
    """What is left by the minute; ``reset`` in seconds until all of it is there again."""

    limit: int
    remaining: int
    reset: float


class Standing(NamedTuple):
    """How a tenant stands; None where it has no such limit."""

    requests: Level | None
    tokens: Level | None


@dataclass(eq=False, slots=True)
class _Place:
    """One request's place; ``tokens`` have been taken for it, an estimate at first."""

    reserved: float
    waits: bool
    tokens: int
    started: bool = False


class _Meter:
    """One tenant's use of its limits."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.held = 0
        self.queued = 0
        self.refusals: dict[LimitName, int] = dict.fromkeys(LIMITS, 0)
        self._holding = self._waiting = 0.0  # seconds that places were held, and waited, of late
        self.configure(limits, now)

    def configure(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.requests = _resized(self.requests, limits.requests_per_minute, now)
        self.tokens = _resized(self.tokens, limits.tokens_per_minute, now)

    def waits(self, places: int, queued: int, tokens: int, now: float) -> dict[LimitName, float]:
        """Seconds until each limit that is in the way lets the request through."""
        limits = self.limits
        waits: dict[LimitName, float] = {}
        if self.requests is not None:
            waits["requests"] = self.requests.wait(places, now)
        if self.tokens is not None:
            waits["tokens"] = self.tokens.wait(max(1, tokens), now)
        if limits.concurrent is not None and self.held + places > limits.concurrent:
            fits = places <= limits.concurrent
            waits["concurrent"] = _next(self._holding, self.held) if fits else math.inf
        if limits.queued is not None and queued and self.queued + queued > limits.queued:
            waits["queued"] = _next(self._waiting, self.queued)
        return {name: wait for name, wait in waits.items() if wait > 0}

    def used(self, now: float) -> dict[LimitName, float]:
        """The used part of each limit; 0 of one that is not set."""
        limits = self.limits
        return {
            "requests": _used(self.requests, now),
            "tokens": _used(self.tokens, now),
            "concurrent": self.held / limits.concurrent if limits.concurrent else 0.0,
            "queued": self.queued / limits.queued if limits.queued else 0.0,
        }

    def take(self, places: list[_Place], now: float) -> None:
        self.held += len(places)
        self.queued += sum(place.waits for place in places)
        if self.requests is not None:
            self.requests.take(len(places), now)
        self.charge(sum(place.tokens for place in places), now)

    def charge(self, tokens: int, now: float) -> None:
        if self.tokens is not None:
            self.tokens.take(tokens, now)

    def start(self, place: _Place, now: float) -> None:
        if not place.started:
            place.started = True
            if place.waits:
                self.queued -= 1
                self._waiting = _mean(self._waiting, now - place.reserved)

    def free(self, place: _Place, used: int | None, now: float) -> None:
        """Takes a place back; ``used`` tokens are paid for, None: not even the request is."""
        self.held -= 1
        self.queued -= place.waits and not place.started
        self.charge((used or 0) - place.tokens, now)
        if used is None:
            if self.requests is not None:
                self.requests.take(-1, now)
        elif place.started:
            self._holding = _mean(self._holding, now - place.reserved)


class Use(NamedTuple):
    """What a tenant has at this moment, and how often each limit turned it away."""

    held: int
    queued: int
    used: Mapping[LimitName, float]
    refusals: Mapping[LimitName, int]


class Admission:
    """The places that one response has within its tenant's limits."""

    def __init__(self, meters: Meters, tenant: Tenant, places: list[_Place]) -> None:
        self.tenant = tenant
        self.refused = False
        self._meters = meters
        self._unused = places

    def submit(self, request_id: str) -> None:
        """Uses a place for a request, which ``Meters.settle`` ends."""
        self._meters.use(request_id, self, self._unused.pop())

    def withdraw(self, request_id: str) -> None:
        """The request was not taken after all."""
        self._unused.append(self._meters.unuse(request_id))

    def close(self, *, refused: bool) -> None:
        """Gives back in full what was not used; of a refused response, all, at its end."""
        self.refused = refused
        unused, self._unused = self._unused, []
        for place in unused:
            self._meters.free(self.tenant, place, None)


class Meters:
    """All tenants' meters. ``clock`` tells seconds and never goes back."""

    def __init__(
        self, tenants: Iterable[Tenant] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._meters: dict[str, _Meter] = {}
        self._used: dict[str, tuple[Admission, _Place]] = {}  # by request
        self.configure(tenants)

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Takes over new limits; what has been used stays used, and who runs goes on."""
        now = self._clock()
        kept: dict[str, _Meter] = {}
        for tenant in tenants:
            kept[tenant.name] = self._of(tenant)
            kept[tenant.name].configure(tenant.limits, now)
        for name, meter in self._meters.items():
            if meter.held:
                kept.setdefault(name, meter)
        self._meters = kept

    def reserve(
        self, tenant: Tenant, requests: int = 1, estimated_tokens: int = 0, *, rows: int = 0
    ) -> Admission:
        """Takes places for one response of so many requests, or nothing. Raises OverLimit.

        ``estimated_tokens`` are the prompts' together. A request that finds one of ``rows`` free
        does not count as queued; else it does until it has one.
        """
        now, meter = self._clock(), self._of(tenant)
        queued = max(0, requests - rows)
        waits = meter.waits(requests, queued, estimated_tokens, now)
        if waits:
            limit = max(waits, key=lambda name: waits[name])
            meter.refusals[limit] += 1
            message = _message(tenant, limit, meter.limits, requests)
            wait = waits[limit]
            raise OverLimit(limit, message, wait if wait < math.inf else None)
        each = -(-estimated_tokens // requests)
        places = [_Place(now, i < queued, each) for i in range(requests)]
        meter.take(places, now)
        return Admission(self, tenant, places)

    def started(self, request_id: str) -> None:
        """The request waits no longer; one that is over is left alone."""
        used = self._used.get(request_id)
        if used is not None:
            self._of(used[0].tenant).start(used[1], self._clock())

    def generated(self, request_id: str, tokens: int = 1) -> None:
        """Charges what a reply has cost up to now, so that it does not come as one sum."""
        used = self._used.get(request_id)
        if used is not None:
            used[1].tokens += tokens
            self._of(used[0].tenant).charge(tokens, self._clock())

    def settle(self, request_id: str, prompt: int, generated: int, *, failed: bool) -> None:
        """The end of a request, with its true numbers of tokens.

        It costs nothing if it ``failed`` or its response was refused, and no tokens if it never
        ran.
        """
        used = self._used.pop(request_id, None)
        if used is not None:
            admission, place = used
            ran = place.started or generated > 0
            cost = prompt + generated if ran else 0
            free = failed or admission.refused
            self.free(admission.tenant, place, None if free else cost)

    def standing(self, tenant: Tenant) -> Standing:
        """How much the tenant has left."""
        now, meter = self._clock(), self._of(tenant)
        return Standing(_level(meter.requests, now), _level(meter.tokens, now))

    def held(self, tenant: Tenant) -> tuple[int, int]:
        """The tenant's places, and how many of these wait."""
        meter = self._of(tenant)
        return meter.held, meter.queued

    def use_of(self, tenant: Tenant) -> Use:
        """Everything that whoever watches wants to know of a tenant."""
        meter = self._of(tenant)
        return Use(meter.held, meter.queued, meter.used(self._clock()), dict(meter.refusals))

    # for admissions

    def use(self, request_id: str, admission: Admission, place: _Place) -> None:
        """Remembers whose place a request has."""
        assert request_id not in self._used
        self._used[request_id] = admission, place

    def unuse(self, request_id: str) -> _Place:
        """Forgets it again."""
        return self._used.pop(request_id)[1]

    def free(self, tenant: Tenant, place: _Place, used: int | None) -> None:
        """Takes a place back."""
        self._of(tenant).free(place, used, self._clock())

    def _of(self, tenant: Tenant) -> _Meter:
        meter = self._meters.get(tenant.name)
        if meter is None:
            meter = self._meters[tenant.name] = _Meter(tenant.limits, self._clock())
        return meter


def _resized(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    return Bucket(per_minute, now) if bucket is None else bucket.resized(per_minute, now)


def _level(bucket: Bucket | None, now: float) -> Level | None:
    if bucket is None:
        return None
    remaining = max(0, math.floor(bucket.level(now)))
    return Level(bucket.capacity, remaining, bucket.full_in(now))


def _used(bucket: Bucket | None, now: float) -> float:
    """Above 1 where a reply has taken more than there was."""
    if bucket is None or not bucket.capacity:
        return 0.0
    return 1 - bucket.level(now) / bucket.capacity


def _mean(mean: float, value: float) -> float:
    return value if not mean else mean + RECENT * (value - mean)


def _next(seconds: float, places: int) -> float:
    """When the next of ``places`` is free, if each is taken for ``seconds``."""
    return min(max(seconds / max(1, places), LEAST_WAIT), MOST_WAIT)


def _message(tenant: Tenant, limit: LimitName, limits: Limits, requests: int) -> str:
    who = f"The tenant {tenant.name!r} has used up its limit"
    if limit == "requests":
        return f"{who} of {limits.requests_per_minute} requests a minute."
    if limit == "tokens":
        return f"{who} of {limits.tokens_per_minute} tokens a minute."
    if limit == "concurrent":
        more = f"; this one needs {requests} places" if requests > (limits.concurrent or 0) else ""
        return f"{who} of {limits.concurrent} requests at once{more}."
    return f"{who} of {limits.queued} waiting requests."
