"""Requests that wait for their model: who is told what, and that none is left waiting."""

from __future__ import annotations

import asyncio
import queue
from contextlib import asynccontextmanager

import anyio
import pytest
from prometheus_client import CollectorRegistry

from scheduler.info import ModelConfig, ServiceConfig
from scheduler.live import LoadedModel
from scheduler.members import Change, Failure
from scheduler.metrics import Gauges, Metrics
from scheduler.request import Request
from scheduler.service import Service
from scheduler.streams import EngineDead, ModelFailed

from .fakes import PATIENCE, StepByStep
from .test_service import collect, end

pytestmark = pytest.mark.anyio

FACTS = LoadedModel(None, None, 100)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Pool(StepByStep):
    """A pool that notes what it is told, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: queue.SimpleQueue = queue.SimpleQueue()

    def add(self, request: Request) -> None:
        super().add(request)
        self.told.put(("add", request.id))

    def want(self, name: str, hold: object) -> None:
        self.told.put(("want", name, hold))

    def leave(self, name: str, hold: object) -> None:
        self.told.put(("leave", name, hold))


class Bench(Service):
    """A service over such a pool, with one model that is loaded and one that is not."""

    def __init__(self) -> None:
        config = ServiceConfig(model="x", served_model_name="x", models=(ModelConfig("y", "y"),))
        super().__init__(config, Metrics(CollectorRegistry()), lambda _: None)
        self.pool = Pool()

    def _build(self):
        self._pool = self.pool
        return self.pool, lambda: {"x": Gauges(running=self.pool.open)}

    async def told(self) -> tuple:
        return await asyncio.to_thread(self.pool.told.get, timeout=PATIENCE)

    def change(self, kind: str, *holds: object, **more: object) -> None:
        self._changed(Change("y", kind, holds=holds, **more))


@asynccontextmanager
async def running():
    service = Bench()
    with anyio.fail_after(PATIENCE):
        await service.start()
        try:
            yield service
        finally:
            for _ in range(3):
                service.pool.steps.put([])
            await service.stop()


async def waiting(service: Bench, count: int = 1) -> tuple[list[asyncio.Task], list[object]]:
    """So many that wait for y, and their holds."""

    async def wait() -> LoadedModel:
        with service.use(service.models["y"]) as use:
            assert not use.ready
            return await use.wait()

    tasks = [asyncio.create_task(wait()) for _ in range(count)]
    holds = []
    for _ in tasks:
        what, name, hold = await service.told()
        assert (what, name) == ("want", "y")
        holds.append(hold)
    return tasks, holds


async def test_a_loaded_model_is_used_at_once_and_left_after_its_request() -> None:
    async with running() as service:
        served = service.models["y"]
        served.facts = FACTS
        served.door.open()
        with service.reserve() as places, service.use(served) as use:
            assert use.ready and await use.wait() is FACTS
            stream = places.submit(Request("r", (1, 2), 3, model="y"))
        assert await service.told() == ("add", "r"), "it could be unloaded under its request"
        assert (await service.told())[:2] == ("leave", "y")
        service.pool.steps.put([end("r")])
        assert await collect(stream) == [end("r")]


async def test_all_who_wait_go_on_when_it_is_loaded() -> None:
    async with running() as service:
        tasks, holds = await waiting(service, 3)
        service.change("loaded", *holds, facts=FACTS)
        assert await asyncio.gather(*tasks) == [FACTS] * 3
        left = [await service.told() for _ in tasks]
        assert {hold for what, _, hold in left if what == "leave"} == set(holds)


async def test_only_who_was_told_goes_on() -> None:
    async with running() as service:
        tasks, holds = await waiting(service, 2)
        service.change("loaded", holds[0], facts=FACTS)
        assert await tasks[0] is FACTS
        assert not tasks[1].done()
        service.change("held", holds[1], facts=FACTS)
        assert await tasks[1] is FACTS


@pytest.mark.parametrize("kind", ["failed", "refused"])
async def test_a_failure_is_told_with_its_reason(kind: str) -> None:
    async with running() as service:
        tasks, holds = await waiting(service, 2)
        service.change(kind, *holds, failure=Failure("no weights", 4.0))
        for task in tasks:
            with pytest.raises(ModelFailed, match="no weights") as caught:
                await task
            assert caught.value.retry_after == 4.0


async def test_who_gives_up_lets_go() -> None:
    async with running() as service:
        (task,), (hold,) = await waiting(service)
        task.cancel()
        assert await service.told() == ("leave", "y", hold)
        service.change("loaded", hold, facts=FACTS)  # too late, and harmless
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_drain_turns_away_who_waits() -> None:
    async with running() as service:
        (task,), _ = await waiting(service)
        await service.drain(PATIENCE)
        with pytest.raises(EngineDead):
            await task
        with pytest.raises(EngineDead), service.use(service.models["y"]) as use:
            await use.wait()


async def test_the_engines_death_turns_away_who_waits() -> None:
    async with running() as service:
        (task,), _ = await waiting(service)
        served = service.models["x"]
        served.facts = FACTS
        with service.reserve() as places:
            stream = places.submit(Request("r", (1, 2), 3, model="x"))
        service.pool.steps.put(RuntimeError("device lost"))
        with pytest.raises(EngineDead):
            await task
        assert [e.reason for e in await collect(stream)] == ["error"]


async def test_loads_and_unloads_are_counted() -> None:
    async with running() as service:
        service.change("loaded", facts=FACTS)
        service.change("failed", failure=Failure("x", 1.0))
        service.change("refused", failure=Failure("x", 1.0))
        assert service.models["y"].facts is FACTS
        service.change("unloaded")
        assert service.models["y"].facts is None
        value = service.metrics.registry.get_sample_value
        labels = {"model": "y", "adapter": "", "draft": ""}
        assert value("commons_model_loads_total", labels | {"result": "loaded"}) == 1
        assert value("commons_model_loads_total", labels | {"result": "failed"}) == 1
        assert value("commons_model_unloads_total", labels) == 1
