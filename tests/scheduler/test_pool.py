"""Several models on one engine thread: loads, memory, turns; with engines that only count."""

from __future__ import annotations

from concurrent.futures import Future
from itertools import pairwise

import pytest

from engine.loader import LoadError
from scheduler.door import Hold
from scheduler.events import Token
from scheduler.members import FIRST_RETRY

from .fake_models import WEIGHTS, World, broken, ends


def test_what_stays_loaded_is_there_from_the_start_and_the_rest_is_not() -> None:
    world = World(("main", "kept", "other"), kept=frozenset({"kept"}))
    assert world.loaded() == ["main", "kept"]
    assert [(c.model, c.kind) for c in world.changes] == [("main", "loaded"), ("kept", "loaded")]
    assert not world.pool.has_work


def test_the_main_model_must_load_and_others_need_not() -> None:
    with pytest.raises(LoadError, match="no weights"):
        World(("main",), script={"main": [broken()]})
    world = World(("main", "kept"), kept=frozenset({"kept"}), script={"kept": [broken("gone")]})
    assert world.loaded() == ["main"]
    assert world.changes[-1].failure.reason == "gone"


def test_a_model_is_loaded_for_the_first_who_asks_and_serves_all_who_wait() -> None:
    world = World(("main", "b"))
    holds = [world.want("b") for _ in range(3)]
    assert [world.told(h) for h in holds] == [None] * 3
    world.run()
    assert {world.told(h).kind for h in holds} == {"loaded"}
    world.request("b", "r")
    assert ends(world.run()) == {"r": "length"}


def test_streams_go_on_between_the_pieces_of_a_load() -> None:
    world = World(("main", "b"), script={"b": [0.01] * 10})
    world.request("main", "r", tokens=200)
    world.until(lambda: "main step" in world.log)
    world.log.clear()
    world.want("b")
    world.until(lambda: world.loaded() == ["main", "b"])
    pieces = [i for i, entry in enumerate(world.log) if entry == "b piece"]
    assert len(pieces) == 10
    # The load came while a step was already paid for; from then on they alternate.
    between = [world.log[a + 1 : b] for a, b in pairwise(pieces[1:])]
    assert all("main step" in entries for entries in between), world.log


def test_a_long_piece_is_paid_back_to_the_streams() -> None:
    world = World(("main", "b"), script={"b": [0.2, 0.0]})
    world.request("main", "r", tokens=200)
    world.until(lambda: "main step" in world.log)
    world.want("b")
    world.until(lambda: "b piece" in world.log)
    world.log.clear()
    world.until(lambda: "b piece" in world.log)
    assert world.log.count("main step") >= 19  # of 0.01 s


def test_a_load_that_waits_for_a_helper_takes_no_turns_and_wakes_the_engine() -> None:
    helper: Future[None] = Future()
    world = World(("main", "b"), script={"b": [helper]})
    hold = world.want("b")
    world.run()
    assert not world.pool.has_work and world.told(hold) is None and not world.wakes
    helper.set_result(None)
    assert world.wakes == 1
    world.run()
    assert world.told(hold).kind == "loaded"


def test_a_model_that_fails_says_why_and_the_rest_goes_on() -> None:
    world = World(("main", "b"), script={"b": [0.01, broken("no tokenizer")]})
    world.request("main", "r", tokens=50)
    holds = [world.want("b"), world.want("b")]
    assert ends(world.run()) == {"r": "length"}
    for hold in holds:
        assert (world.told(hold).kind, world.told(hold).failure.reason) == (
            "failed",
            "no tokenizer",
        )
    assert world.memory.weights == WEIGHTS  # of the main model


def test_a_failure_holds_for_a_while_which_grows_and_then_it_is_tried_again() -> None:
    world = World(("main", "b"), script={"b": [broken()]})

    def tried() -> bool:
        world.log.clear()
        hold = world.want("b")
        world.run()
        assert world.told(hold).kind == ("failed" if "b piece" in world.log else "refused")
        return "b piece" in world.log

    assert tried()
    assert not tried()
    world.now += FIRST_RETRY
    assert tried()
    world.now += FIRST_RETRY
    assert not tried()
    world.now += FIRST_RETRY
    world.script["b"] = []
    hold = world.want("b")
    world.run()
    assert world.told(hold).kind == "loaded"


def test_whatever_breaks_a_load_breaks_nothing_else_and_is_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(("main", "b"), script={"b": [ZeroDivisionError("secret")]})
    hold = world.want("b")
    world.run()
    assert "secret" not in world.told(hold).failure.reason
    assert "secret" in caplog.text
    world.request("main", "r")
    assert ends(world.run()) == {"r": "length"}


def test_what_was_used_least_recently_makes_room() -> None:
    world = World(("main", "a", "b", "c"), room=3)
    for name in "ab":
        world.pool.leave(name, world.want(name))
        hold = world.want(name)
        world.run()
        world.pool.leave(name, hold)
    world.request("a", "r")  # b is now the one used least recently
    world.run()
    world.want("c")
    world.run()
    assert world.loaded() == ["main", "a", "c"]
    assert world.log[-1] == "b closed"
    assert world.memory.weights == 3 * WEIGHTS


def test_as_many_leave_as_it_takes() -> None:
    world = World(("main", "a", "b", "big"), room=3, weights={"big": 2 * WEIGHTS})
    for name in "ab":
        hold = world.want(name)
        world.run()
        world.pool.leave(name, hold)
    world.want("big")
    world.run()
    assert world.loaded() == ["main", "big"]


@pytest.mark.parametrize("name", ["main", "b"])
def test_weights_that_are_of_no_use_are_given_back(name: str) -> None:
    world = loaded(World(("main", "b"), unused={name: 30}), "b")
    assert world.memory.weights == 2 * WEIGHTS
    world.pool.unload("b")
    world.run()
    assert world.memory.weights == WEIGHTS


def test_what_stays_loaded_never_makes_room() -> None:
    world = World(("main", "kept", "b"), room=2, kept=frozenset({"kept"}))
    hold = world.want("b")
    world.run()
    assert world.loaded() == ["main", "kept"]
    assert "--memory leaves 0.0 MB" in world.told(hold).failure.reason


def test_what_can_never_fit_is_refused_at_once_and_drives_nobody_out() -> None:
    world = World(("main", "a", "big"), room=2, weights={"big": 2 * WEIGHTS})
    hold = world.want("a")
    world.run()
    world.pool.leave("a", hold)
    hold = world.want("big")
    world.run()
    assert world.told(hold).kind == "failed"
    assert world.loaded() == ["main", "a"]


def test_a_model_with_requests_is_not_unloaded_but_takes_no_more_and_comes_back() -> None:
    world = World(("main", "a", "b"), room=2)
    hold = world.want("a")
    world.run()
    world.request("a", "first", tokens=20)
    world.pool.leave("a", hold)
    wants_b = world.want("b")
    late = None
    events = []
    while not ends(events):
        assert world.loaded() == ["main", "a"]
        events += world.pool.step()
        if late is None and not world.pool.members["a"].door.enter(probe := Hold()):
            late = world.want("a")
        world.pool.leave("a", probe)
    assert ends(events) == {"first": "length"}
    world.until(lambda: world.told(wants_b))
    assert world.loaded() == ["main", "b"]
    assert world.told(late) is None
    world.pool.leave("b", wants_b)
    world.run()
    assert world.told(late).kind == "loaded"
    assert world.loaded() == ["main", "a"]


def test_a_load_that_nobody_waits_for_any_more_drives_nobody_out() -> None:
    world = World(("main", "a", "b"), room=2)
    held = world.want("a")
    world.run()
    hold = world.want("b")
    world.run()  # b waits for a, which is held
    late = world.want("a")  # and a takes nothing more
    world.run()
    assert world.told(late) is None
    world.pool.leave("b", hold)
    assert world.told(late).kind == "held"
    world.pool.leave("a", held)
    world.run()
    assert world.loaded() == ["main", "a"]
    world.request("a", "r")
    assert ends(world.run()) == {"r": "length"}


def test_who_gives_up_before_the_load_begins_starts_none() -> None:
    world = World(("main", "b"), script={"b": [0.01]})
    world.pool.leave("b", world.want("b"))
    world.run()
    assert world.log == []


def test_an_operator_unloads_a_model_once_it_is_idle() -> None:
    world = World(("main", "b"))
    hold = world.want("b")
    world.run()
    world.request("b", "r", tokens=10)
    world.pool.leave("b", hold)
    world.pool.unload("b")
    assert [s.state for s in world.pool.states()] == ["loaded", "unloading"]
    assert ends(world.run()) == {"r": "length"}
    assert [s.state for s in world.pool.states()] == ["loaded", "unloaded"]
    assert world.changes[-1].kind == "unloaded"
    assert world.memory.weights == WEIGHTS


def loaded(world: World, *names: str) -> World:
    for name in names:
        hold = world.want(name)
        world.run()
        world.pool.leave(name, hold)
    world.log.clear()
    return world


def test_models_get_equal_time_however_many_rows_they_have() -> None:
    world = loaded(World(("main", "b"), budget=10**6, costs={"main": 0.1, "b": 0.01}), "b")
    for i in range(30):
        world.request("main", f"m{i}", tokens=1000)
    world.request("b", "lone", tokens=1000)
    world.until(lambda: world.log.count("main step") >= 20)
    steps = world.log.count("main step") * 0.1, world.log.count("b step") * 0.01
    assert steps[1] > 0.8 * (steps[0] - 0.1), "the lone row is starved"
    assert steps[0] > 0.8 * (steps[1] - 0.1), "the many rows are starved"


def test_beside_others_a_turn_ends_with_no_step_under_way() -> None:
    world = loaded(World(("main", "b")), "b")
    world.request("main", "m", tokens=30)
    world.request("b", "b", tokens=30)
    while all(m.ready for m in world.pool.members.values()):
        world.pool.step()
        busy = [name for name, engine in world.engines.items() if engine.busy]
        assert not (busy and all(m.ready for m in world.pool.members.values())), busy


def test_a_model_alone_overlaps_delivery_with_its_next_step() -> None:
    world = loaded(World(("main", "b")), "b")
    world.request("main", "m", tokens=30)
    world.until(lambda: world.log.count("main step") >= 3)
    events = world.pool.step()
    assert any(isinstance(e, Token) for e in events)
    assert world.engines["main"].busy


def test_a_prompt_beside_another_models_streams_is_cut_into_chunks() -> None:
    """Each turn of the prompt keeps to the stall target, though its own model decodes nothing."""
    world = loaded(World(("main", "b"), budget=10**6), "b")
    world.request("main", "m", tokens=3000)
    world.until(lambda: world.log.count("main step") >= 3)
    world.request("b", "b", prompt=2000)
    longest, last = 0.0, world.now
    while world.pool.members["b"].live.scheduler.has_work:
        if any(e.request_id == "m" for e in world.pool.step()):
            longest, last = max(longest, world.now - last), world.now
    assert longest <= 0.1 + 0.02, longest  # the stall target, and the steps themselves


def test_memory_that_another_model_has_is_waited_for() -> None:
    world = loaded(World(("main", "b"), budget=100), "b")
    world.request("main", "m", prompt=60, tokens=20)
    world.until(lambda: world.log.count("main step") >= 2)
    world.request("b", "b", prompt=50, tokens=5)
    assert ends(world.run()) == {"m": "length", "b": "length"}


def test_what_waits_for_another_models_memory_can_be_aborted() -> None:
    world = loaded(World(("main", "b"), budget=100), "b")
    world.request("main", "m", prompt=60, tokens=20)
    world.until(lambda: world.log.count("main step") >= 2)
    world.request("b", "b", prompt=50)
    world.pool.step()
    world.pool.abort("b")
    events = world.until(lambda: not world.pool.members["b"].live.scheduler.has_work)
    assert ends(events) == {"b": "abort"}


def test_a_model_that_needs_much_memory_gets_it_although_another_is_always_busy() -> None:
    world = loaded(World(("main", "b"), budget=100), "b")
    events = []
    count = 0
    world.request("main", "m0", prompt=30, tokens=10)
    world.until(lambda: world.log.count("main step") >= 2)
    world.request("b", "b", prompt=80, tokens=5)
    main = world.pool.members["main"].live.scheduler
    while "b" not in ends(events):
        if main.running + len(main.waiting) < 2 and count < 1000:
            count += 1
            world.request("main", f"m{count}", prompt=30, tokens=10)
        events += world.pool.step()
    assert ends(events)["b"] == "length"
    assert count < 100, "it waited for the other model to run dry"
    assert set(ends(events + world.run()).values()) == {"length"}


def test_gauges_of_all_models_add_up() -> None:
    world = loaded(World(("main", "b", "c"), budget=10**6), "b")
    world.request("main", "m", prompt=30, tokens=10)
    world.request("b", "b", prompt=40, tokens=10)
    world.want("c")
    world.until(lambda: len(world.engines["b"].rows) == 1 == len(world.engines["main"].rows))
    picture = world.pool.picture()
    assert list(picture) == ["main", "b", "c"]
    owned = sum(g.owned for g in picture.values())
    assert owned == world.engines["main"].used
    assert sum(g.free for g in picture.values()) == picture["main"].kv_limit - owned
    assert [g.weights for g in picture.values()][:2] == [WEIGHTS, WEIGHTS]
