"""The engine thread, with a scheduler that steps when the test says so."""

from __future__ import annotations

import queue
import threading

import pytest

from scheduler.events import Finished, Token
from scheduler.metrics import Gauges
from scheduler.request import Request
from scheduler.worker import Abort, Worker

from .fakes import PATIENCE, StepByStep


class Desk:
    """What the worker calls, as one queue of (what, argument, thread)."""

    def __init__(self, build=None) -> None:
        self.calls: queue.SimpleQueue = queue.SimpleQueue()
        self.scheduler = StepByStep()
        self.pictures = 0
        self.worker = Worker(
            build or (lambda: (self.scheduler, self.picture)),
            lambda events: self.note("deliver", events),
            lambda: self.note("ready", None),
            lambda error: self.note("died", error),
        )

    def picture(self) -> dict[str, Gauges]:
        self.pictures += 1
        return {"x": Gauges(running=self.scheduler.open)}

    def note(self, what, argument) -> None:
        self.calls.put((what, argument, threading.get_ident()))

    def next(self):
        return self.calls.get(timeout=PATIENCE)

    def __enter__(self):
        self.worker.start()
        return self

    def __exit__(self, *_) -> None:
        self.worker.stop()
        self.scheduler.steps.put([])  # for a step that is being waited for
        assert self.worker.join(PATIENCE)


def request(name: str) -> Request:
    return Request(name, (1, 2, 3), 4)


def end(name: str) -> Finished:
    return Finished(name, "length", 3, 0, 1)


def test_everything_happens_on_one_thread_of_its_own():
    with Desk() as desk:
        what, _, thread = desk.next()
        assert what == "ready"
        desk.worker.send(request("a"))
        desk.scheduler.steps.put([end("a")])
        assert desk.next() == ("deliver", [end("a")], thread)
        assert desk.scheduler.threads == {thread}
        assert thread != threading.get_ident()


def test_a_step_is_delivered_at_once_and_as_a_whole():
    with Desk() as desk:
        desk.next()
        for name in "ab":
            desk.worker.send(request(name))
        desk.scheduler.wait_for(1)
        first = [Token("a", 7), Token("b", 8)]
        desk.scheduler.steps.put(first)
        assert desk.next()[:2] == ("deliver", first)
        desk.scheduler.steps.put([])
        second = [end("a"), end("b")]
        desk.scheduler.steps.put(second)
        assert desk.next()[:2] == ("deliver", second), "a step without events is not delivered"
        assert desk.calls.empty()


def test_messages_are_taken_in_between_two_steps_in_their_order():
    with Desk() as desk:
        desk.next()
        desk.worker.send(request("a"))
        desk.scheduler.wait_for(1)
        desk.worker.send(request("b"))
        desk.worker.send(Abort("a"))
        assert [r.id for r in desk.scheduler.added] == ["a"], "the step is not over"
        desk.scheduler.steps.put([])
        desk.scheduler.wait_for(2)
        assert [r.id for r in desk.scheduler.added] == ["a", "b"]
        assert desk.scheduler.aborted == ["a"]
        desk.scheduler.steps.put([end("a"), end("b")])
        desk.next()


def test_without_work_there_is_no_step():
    with Desk() as desk:
        desk.next()
        desk.worker.send(Abort("unknown"))
        desk.scheduler.wait_for(1)
        desk.worker.send(request("a"))
        desk.scheduler.wait_for(1)
        # The first step is that of the request: an earlier one would have had no work.
        desk.scheduler.steps.put([end("a")])
        assert desk.next()[:2] == ("deliver", [end("a")])


def test_the_picture_shows_an_engine_that_came_to_rest():
    with Desk() as desk:
        desk.next()
        desk.worker.send(request("a"))
        desk.scheduler.steps.put([end("a")])
        desk.next()
        assert desk.worker.gauges["x"].running == 0
        assert desk.pictures >= 2


def test_an_error_while_loading_is_the_last_word():
    def build():
        raise ValueError("no such model")

    desk = Desk(build)
    desk.worker.start()
    what, error, _ = desk.next()
    assert (what, str(error)) == ("died", "no such model")
    assert desk.worker.join(PATIENCE)
    assert desk.calls.empty()


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), SystemExit(1)])
def test_an_error_in_a_step_ends_the_thread_and_is_told_once(error):
    desk = Desk()
    desk.worker.start()
    desk.next()
    desk.worker.send(request("a"))
    desk.scheduler.steps.put(error)
    assert desk.next()[:2] == ("died", error)
    assert desk.worker.join(PATIENCE)
    assert desk.calls.empty()


def test_the_heartbeat_stands_still_in_a_step():
    with Desk() as desk:
        desk.next()
        desk.worker.send(request("a"))
        desk.scheduler.wait_for(1)
        beat = desk.worker._beat
        first = desk.worker.heartbeat_age
        assert desk.worker.heartbeat_age >= first >= 0
        assert desk.worker._beat == beat
        desk.scheduler.steps.put([end("a")])
        desk.next()
        assert desk.worker._beat > beat


def test_stopping_ends_the_thread_with_work_left_and_no_more_events():
    desk = Desk()
    desk.worker.start()
    desk.next()
    desk.worker.send(request("a"))
    desk.scheduler.wait_for(1)
    desk.worker.stop()
    desk.scheduler.steps.put([])
    assert desk.worker.join(PATIENCE)
    assert desk.calls.empty()
