"""Places within a tenant's limits: given back exactly once, whatever becomes of the request."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from scheduler.events import Token
from scheduler.limits import OverLimit
from scheduler.request import Request
from scheduler.streams import EngineDead, QueueFull, RequestStream, Unfit
from scheduler.tenant import Limits, Tenant

from .test_service import MOST_TOKENS, Bench, collect, end, request, running

pytestmark = pytest.mark.anyio

WHO = Tenant("a", limits=Limits(requests_per_minute=100, tokens_per_minute=1000, concurrent=4))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def theirs(name: str, tokens: int = 3) -> Request:
    return replace(request(name, tokens), tenant=WHO)


def submit(service: Bench, name: str, estimated: int = 10) -> RequestStream:
    with service.reserve(1, WHO, estimated) as place:
        return place.submit(theirs(name))


def books(service: Bench) -> tuple[int, int, int, int]:
    """Requests and tokens that were used, places held, and places that wait."""
    meters = service.tenants.meters
    requests, tokens = meters.standing(WHO)
    assert requests is not None and tokens is not None
    used = requests.limit - requests.remaining, tokens.limit - tokens.remaining
    return *used, *meters.held(WHO)


async def test_a_whole_life() -> None:
    async with running(max_rows=1, max_queue=9) as service:
        a, b = submit(service, "a"), submit(service, "b")
        assert books(service) == (2, 20, 2, 1)
        service.tenants.accounting("x", service.models.main.metrics).started("b")
        service.step(Token("a", 1), Token("a", 2), end("b"))
        await collect(b)
        assert books(service) == (2, 10 + 2 + 4, 1, 0)
        service.step(end("a"))
        await collect(a)
        assert books(service) == (2, 4 + 4, 0, 0)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_nothing_is_kept_of_what_is_refused_before_it_is_handed_over(error) -> None:
    async with running() as service:
        with pytest.raises(error), service.reserve(3, WHO, 100):
            assert books(service) == (3, 102, 3, 0)
            raise error
        assert books(service) == (0, 0, 0, 0)
        assert service.outstanding == 0


async def test_a_full_queue_takes_nothing_of_the_tenants_limits() -> None:
    async with running(max_rows=1, max_queue=0) as service:
        stream = submit(service, "a")
        for _ in range(3):
            with pytest.raises(QueueFull):
                service.reserve(1, WHO, 10)
        assert books(service) == (1, 10, 1, 0)
        service.step(end("a"))
        await collect(stream)


async def test_a_limit_takes_nothing_of_the_queue() -> None:
    async with running(max_rows=8) as service:
        with service.reserve(4, WHO, 10):
            for _ in range(3):
                with pytest.raises(OverLimit):
                    service.reserve(1, WHO, 10)
            assert service.outstanding == 4
            with service.reserve(4):
                pass
        assert service.outstanding == 0


async def test_a_response_of_which_one_prompt_never_fits_is_free() -> None:
    async with running() as service:
        with pytest.raises(Unfit), service.reserve(3, WHO, 30) as places:
            stream = places.submit(theirs("a"))
            places.submit(theirs("b", MOST_TOKENS + 1))
        assert books(service) == (1, 10, 1, 0)
        service.abort("a")
        service.step(end("a", "abort"))
        await collect(stream)
        assert books(service) == (0, 0, 0, 0)


async def test_an_abort_before_the_start_costs_the_request_alone() -> None:
    async with running(max_rows=1) as service:
        stream = submit(service, "a")
        service.abort("a")
        service.step(end("a", "abort")._replace(completion_tokens=0))
        await collect(stream)
        assert books(service) == (1, 0, 0, 0)


async def test_when_the_engine_dies_all_is_given_back() -> None:
    async with running() as service:
        streams = [submit(service, "a"), submit(service, "b")]
        service.step(Token("a", 1))
        assert await anext(streams[0]) == [Token("a", 1)]
        with pytest.raises(EngineDead), service.reserve(1, WHO, 10) as place:
            service.scheduler.steps.put(RuntimeError())
            await service.died.wait()
            place.submit(theirs("c"))
        for stream in streams:
            await collect(stream)
        assert books(service) == (0, 0, 0, 0)
        assert service.outstanding == 0


async def test_what_outlives_the_drain_is_given_back_once() -> None:
    async with running() as service:
        stream = submit(service, "a")
        await service.drain(0.0)
        service.step(Token("a", 1))
        service.step(end("a"))
        await collect(stream)
        await asyncio.to_thread(service.scheduler.wait_for, 2)
        assert books(service) == (0, 0, 0, 0)
