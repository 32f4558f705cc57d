"""Threads for grammars: one for each tenant, so that none waits for another's."""

from __future__ import annotations

import threading

import anyio
import pytest

from server.compiling import Compiling, TooBusy, TooLong

pytestmark = pytest.mark.anyio


async def test_a_tenant_does_not_wait_for_another() -> None:
    compiling, release = Compiling(), threading.Event()
    done: list[str] = []

    async def run(tenant: str) -> None:
        await compiling.run(release.wait, tenant)
        done.append(tenant)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(run, "greedy")
        with anyio.fail_after(5):
            assert await compiling.run(lambda: "mine", "modest") == "mine"
        assert not done
        release.set()
    assert done == ["greedy"] * 5


async def test_nobody_waits_for_ever() -> None:
    compiling, release = Compiling(patience=0.05), threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compiling.run, release.wait, "a")
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(TooBusy):
            await compiling.run(lambda: None, "a")
        release.set()
    await compiling.run(lambda: None, "a")


async def test_threads_over_their_time_are_few() -> None:
    compiling, release = Compiling(limit=0.05), threading.Event()
    for _ in range(3):
        with pytest.raises(TooLong):
            await compiling.run(release.wait, "a")
    with pytest.raises(TooBusy):
        await compiling.run(lambda: None, "b")
    release.set()
