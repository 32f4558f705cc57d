"""The async face of the engine thread, whose scheduler steps when the test says so."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import anyio
import pytest
from prometheus_client import CollectorRegistry

from engine.loader import LoadError
from scheduler.events import Finished, Token
from scheduler.info import ServiceConfig
from scheduler.live import LoadedModel
from scheduler.metrics import Gauges, Metrics
from scheduler.request import Request
from scheduler.service import LoadFailed, Service
from scheduler.streams import EngineDead, QueueFull, Unfit

from .fakes import PATIENCE, StepByStep

MOST_TOKENS = 10

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Bench(Service):
    """A service without a model."""

    def __init__(self, error: Exception | None = None, **limits: int) -> None:
        config = ServiceConfig(model="x", served_model_name="x", **limits)
        self.registry = CollectorRegistry()
        super().__init__(config, Metrics(self.registry), lambda _: None)
        self.scheduler = StepByStep()
        self.build_error = error
        self.woken: list[tuple[int, int]] = []  # thread and number of events of each wake-up

    def _build(self):
        if self.build_error is not None:
            raise self.build_error
        self.models.main.facts = LoadedModel(None, None, MOST_TOKENS)
        return self.scheduler, lambda: {"x": Gauges(running=self.scheduler.open)}

    def _dispatch(self, events) -> None:
        self.woken.append((threading.get_ident(), len(events)))
        super()._dispatch(events)

    def step(self, *events: Token | Finished) -> None:
        self.scheduler.steps.put(list(events))


@asynccontextmanager
async def running(**limits: int):
    service = Bench(**limits)
    with anyio.fail_after(PATIENCE):
        await service.start()
        try:
            yield service
        finally:
            # The thread may be waiting for a step, or be about to.
            for _ in range(3):
                service.step()
            await service.stop()


def request(name: str, tokens: int = 3) -> Request:
    return Request(name, (1,) * tokens, 4, model="x")


def submit(service: Service, *names: str):
    with service.reserve(len(names)) as places:
        streams = [places.submit(request(name)) for name in names]
    return streams if len(streams) > 1 else streams[0]


def end(name: str, reason="length") -> Finished:
    return Finished(name, reason, 3, 0, 1)


async def collect(stream) -> list:
    return [event async for events in stream for event in events]


async def test_events_arrive_on_the_loop_one_wake_up_a_step():
    async with running() as service:
        a, b = submit(service, "a", "b")
        service.step(Token("a", 1), Token("b", 2), Token("a", 3))
        service.step(end("a"), end("b"))
        assert await collect(a) == [Token("a", 1), Token("a", 3), end("a")]
        assert await collect(b) == [Token("b", 2), end("b")]
        assert service.woken == [(threading.get_ident(), 3), (threading.get_ident(), 2)]
        assert threading.get_ident() not in service.scheduler.threads


async def test_what_came_together_is_read_together():
    async with running() as service:
        stream = submit(service, "a")
        service.step(Token("a", 1), Token("a", 2))
        assert await anext(stream) == [Token("a", 1), Token("a", 2)]
        service.step(Token("a", 3), end("a"))
        assert await anext(stream) == [Token("a", 3), end("a")]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_prompt_that_never_fits_is_refused_at_once_and_its_place_given_back():
    async with running(max_rows=1, max_queue=0) as service:
        for _ in range(3):
            with (
                pytest.raises(Unfit, match=f"{MOST_TOKENS + 1} tokens"),
                service.reserve() as place,
            ):
                place.submit(request("a", MOST_TOKENS + 1))
        with service.reserve() as place:
            stream = place.submit(request("a", MOST_TOKENS))
        service.step(end("a"))
        assert await collect(stream) == [end("a")]


async def test_places_are_counted_from_reservation_to_the_terminal_event():
    async with running(max_rows=1, max_queue=2) as service:
        with service.reserve(2):
            with pytest.raises(QueueFull):
                service.reserve(2)
            stream = submit(service, "a")
            with pytest.raises(QueueFull):
                service.reserve()
        with service.reserve(2), pytest.raises(QueueFull):
            service.reserve()
        service.step(end("a"))
        await collect(stream)
        with service.reserve(3), pytest.raises(QueueFull):
            service.reserve()
        assert service._outstanding == 0


async def test_a_place_goes_back_when_templating_fails():
    async with running(max_rows=1, max_queue=0) as service:
        with pytest.raises(ValueError, match="template"), service.reserve():
            raise ValueError("template")
        with service.reserve():
            pass


async def test_abort_reaches_the_engine_thread_and_the_stream_ends_with_its_event():
    async with running() as service:
        stream = submit(service, "a")
        await asyncio.to_thread(service.scheduler.wait_for, 1)
        service.abort("a")
        service.step()
        await asyncio.to_thread(service.scheduler.wait_for, 1)
        assert service.scheduler.aborted == ["a"]
        service.step(end("a", "abort"))
        assert await collect(stream) == [end("a", "abort")]
        service.abort("a")
        service.abort("never there")
        other = submit(service, "b")
        await asyncio.to_thread(service.scheduler.wait_for, 1)
        assert service.scheduler.aborted == ["a"]
        service.step(end("b"))
        await collect(other)


async def test_when_the_engine_dies_every_stream_ends_with_one_error():
    async with running(max_rows=2, max_queue=1) as service:
        streams = submit(service, "a", "b", "c")
        service.step(Token("a", 1), end("c"))
        assert await anext(streams[0]) == [Token("a", 1)]
        service.scheduler.steps.put(RuntimeError("out of luck"))
        await service.died.wait()
        a, b, c = [await collect(s) for s in streams]
        assert [(e.request_id, e.reason) for e in (*a, *b)] == [("a", "error"), ("b", "error")]
        assert a[0].message and "luck" not in a[0].message
        assert c == [end("c")]
        health = service.health()
        assert not health.alive and not health.ready
        assert "out of luck" in str(health.error)
        with pytest.raises(EngineDead):
            service.reserve()
        assert service._outstanding == 0


async def test_a_request_handed_over_to_a_dying_engine_ends_too():
    async with running() as service:
        first = submit(service, "a")
        await asyncio.to_thread(service.scheduler.wait_for, 1)
        service.scheduler.steps.put(RuntimeError())
        # The thread is dead and the loop has not heard of it yet.
        assert await_thread(service)
        second = submit(service, "b")
        ends = [*await collect(first), *await collect(second)]
        assert [(e.request_id, e.reason) for e in ends] == [("a", "error"), ("b", "error")]
        await service.died.wait()


def await_thread(service: Service) -> bool:
    """Waits with the loop standing still."""
    return service._worker.join(PATIENCE)


@pytest.mark.parametrize(
    ("error", "text"),
    [(LoadError("no weights: convert"), "no weights: convert"), (KeyError("k"), "KeyError: 'k'")],
)
async def test_a_model_that_cannot_be_loaded_is_said_by_start(error, text):
    service = Bench(error)
    with anyio.fail_after(PATIENCE), pytest.raises(LoadFailed, match=text):
        await service.start()
    assert not service.health().alive
    assert not service.died.is_set()
    with pytest.raises(EngineDead):
        service.reserve()
    await service.stop()


async def test_draining_waits_for_what_runs_and_takes_nothing_new():
    async with running() as service:
        assert service.health().ready
        stream = submit(service, "a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.drain, PATIENCE)
            await anyio.wait_all_tasks_blocked()
            health = service.health()
            assert health.draining and health.alive and not health.ready
            with pytest.raises(EngineDead):
                service.reserve()
            service.step(Token("a", 1))
            service.step(end("a"))
        assert await collect(stream) == [Token("a", 1), end("a")]


async def test_what_outlives_the_drain_ends_with_one_error():
    async with running() as service:
        stream = submit(service, "a")
        await service.drain(0.0)
        service.step(Token("a", 1))
        (only,) = await collect(stream)
        assert (only.reason, only.message) == ("error", "The server is shutting down.")
        await asyncio.to_thread(service.scheduler.wait_for, 2)
        assert service.scheduler.aborted == ["a"]
        assert service._outstanding == 0


async def test_an_idle_service_drains_at_once():
    async with running() as service:
        await service.drain(PATIENCE)
        assert service.health().draining


async def test_the_gauges_are_set_for_a_scrape():
    async with running() as service:
        service.observe()
        value = service.registry.get_sample_value
        labels = {"model": "x", "adapter": "", "draft": ""}
        assert value("commons_engine_healthy", labels) == 1
        submit(service, "a")
        service.scheduler.steps.put(RuntimeError())
        await service.died.wait()
        service.observe()
        assert value("commons_engine_healthy", labels) == 0
