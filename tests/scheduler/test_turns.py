"""Equal seconds for all that have work."""

from __future__ import annotations

from scheduler.turns import Turns


def run(turns: Turns[str], costs: dict[str, float], until: float) -> dict[str, float]:
    """The seconds that each got while all have work."""
    got = dict.fromkeys(costs, 0.0)
    while sum(got.values()) < until:
        chosen = turns.choose(list(costs))
        turns.charge(chosen, costs[chosen])
        got[chosen] += costs[chosen]
    return got


def test_long_turns_and_short_ones_get_the_same_time() -> None:
    got = run(Turns(), {"a": 0.5, "b": 0.01, "c": 0.1}, 30.0)
    for seconds in got.values():
        assert abs(seconds - 10.0) <= 0.5


def test_none_waits_longer_than_one_turn_of_each_other() -> None:
    turns: Turns[str] = Turns()
    costs = {"a": 0.3, "b": 0.2, "c": 0.01}
    run(turns, costs, 5.0)
    waited = 0.0
    for _ in range(500):
        chosen = turns.choose(list(costs))
        turns.charge(chosen, costs[chosen])
        waited = 0.0 if chosen == "c" else waited + costs[chosen]
        assert waited <= 0.5 + 1e-9


def test_idle_time_is_not_saved_up() -> None:
    turns: Turns[str] = Turns()
    run(turns, {"a": 0.1, "b": 0.1}, 1.0)
    run(turns, {"a": 0.1}, 100.0)
    got = run(turns, {"a": 0.1, "b": 0.1}, 10.0)
    assert abs(got["a"] - got["b"]) <= 0.2


def test_time_that_nobody_else_wanted_is_not_held_against_anyone() -> None:
    turns: Turns[str] = Turns()
    run(turns, {"a": 0.1}, 100.0)
    run(turns, {"b": 0.1}, 1.0)  # a newcomer, while a has no work
    got = run(turns, {"a": 0.1, "b": 0.1}, 10.0)
    assert abs(got["a"] - got["b"]) <= 0.2


def test_who_comes_back_is_next() -> None:
    turns: Turns[str] = Turns()
    run(turns, {"a": 0.1, "b": 0.1}, 1.0)
    run(turns, {"a": 0.1}, 10.0)
    turns.charge(turns.choose(["a"]), 0.1)
    assert turns.choose(["a", "b"]) == "b"
