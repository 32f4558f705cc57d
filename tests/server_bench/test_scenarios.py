"""Scenario files, when their clients come, and what they do, against a small endpoint."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from server.bench import bench
from server.bench_arrivals import arrival_times
from server.bench_client import BenchError, Endpoint, open_session, stream_reply
from server.bench_load import find_routes, run_load
from server.bench_prompts import question, reply_tokens, system_prompt
from server.bench_results import Results
from server.bench_scenario import (
    Burst,
    Group,
    Poisson,
    Scenario,
    changed,
    read_scenario,
    scenario_names,
)
from server.settings_file import ConfigError

from .endpoint import TinyEndpoint

app = typer.Typer()
app.command()(bench)

ONE = """\
about = "one"

[[clients]]
name = "c"
arrivals = { kind = "closed", clients = 2 }
"""
POISSON = 'arrivals = { kind = "poisson", per_s = 50.0 }'


def scenario_of(path: Path, text: str) -> Scenario:
    path.write_text(text)
    return read_scenario(str(path))


def load(endpoint: TinyEndpoint, scenario: Scenario, keys: dict[str, str] | None = None) -> Results:
    results = Results(scenario.turns, [group.name for group in scenario.clients])

    async def once() -> None:
        async with open_session(30) as session:
            routes = await find_routes(
                session, Endpoint(endpoint.base, "default", "common"), scenario, keys
            )
            await run_load(session, scenario, routes, results)

    asyncio.run(once())
    return results


def test_these_come_with_the_server() -> None:
    assert {
        "agent-swarm", "burst", "scan", "long-context", "mixed-tenants", "adapters"
    } <= set(scenario_names())  # fmt: skip


@pytest.mark.parametrize("name", scenario_names())
def test_each_scenario_ends_and_says_what_it_is(name: str) -> None:
    scenario = read_scenario(name)
    assert scenario.name == name
    assert scenario.about.endswith((".", "?"))
    assert scenario.requests() or scenario.duration_s
    for group in scenario.clients:
        assert question(scenario, group, 0, 0).startswith(f"{group.name} 0: ")
        assert bool(system_prompt(scenario, group, 0)) == bool(group.system_tokens)
    assert scenario.smaller(4).turns == scenario.turns


def test_a_file_says_all_that_a_load_is(tmp_path: Path) -> None:
    scenario = scenario_of(
        tmp_path / "mine.toml",
        'about = "mine"\nseed = 3\n[[clients]]\nname = "a"\n' + POISSON + "\nconversations = 5\n"
        "turns = 2\nuser_tokens = [10, 20]\nmax_tokens = [1, 3]\nsystem_tokens = 40\n"
        'system_prompts = 2\nmodels = ["x", "y"]\ntenant = "t"\npause_s = 1\n',
    )
    (group,) = scenario.clients
    assert (scenario.name, scenario.seed, scenario.requests()) == ("mine", 3, 10)
    assert group.arrivals == Poisson(50.0)
    assert (group.user_tokens, group.models, group.tenant) == ((10, 20), ("x", "y"), "t")
    lengths = {reply_tokens(scenario, group, i, 0) for i in range(50)}
    assert lengths == {1, 2, 3}
    prompts = [system_prompt(scenario, group, i) for i in range(4)]
    assert prompts[0] == prompts[2] != prompts[1] == prompts[3]
    others = changed(scenario, seed=4)
    assert system_prompt(others, others.clients[0], 0) != prompts[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + "turns = 0\n", ":6: clients[0].turns: expected `int` >= 1"),
        (ONE + 'turns = "two"\n', ":6: clients[0].turns: expected `int`, got `str`"),
        (ONE + "tokens = 3\n", ":6: clients[0]: object contains unknown field `tokens`"),
        (ONE + "user_tokens = [9, 3]\n", ":3: clients[0]: `user_tokens` goes from the smaller"),
        (ONE + "user_tokens = [9]\n", ":6: clients[0].user_tokens: expected `list` of length >= 2"),
        (ONE + "pause_s = nan\n", ":6: clients[0].pause_s: expected `float` >= 0.0"),
        (ONE + "pause_s = inf\n", ":6: clients[0].pause_s: expected `float` <= "),
        (ONE + "system_tokens = 100000000000\n", ":6: clients[0].system_tokens: expected `int` <="),
        (ONE + 'models = "all"\n', ":6: clients[0].models: invalid enum value 'all'"),
        (ONE + ONE.partition("\n\n")[2], ": two groups of `clients` have one name"),
        (ONE.replace("closed", "often"), ":5: clients[0].arrivals.kind: invalid value 'often'"),
        (ONE.replace("clients = 2", "clients = 0"), ":5: clients[0].arrivals.clients: expected"),
        (ONE.replace(', clients = 2', ""), "clients[0].arrivals: object missing required field"),
        (ONE.replace('"c"', '"-"'), ":4: clients[0].name: expected `str` matching"),
        ("about = 3\n" + ONE.partition("\n")[2], ":1: about: expected `str`, got `int`"),
        ("duration_s = 0\n" + ONE, ":1: duration_s: expected `float` > 0.0"),
        ('about = "none"\n', ": object missing required field `clients`"),
        ("clients = []\n", ":1: clients: expected `list` of length >= 1"),
        (f'[[clients]]\nname = "c"\n{POISSON}\n', "nothing ends the clients 'c'"),
        ("[[clients]\n", ":1: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    with pytest.raises(ConfigError) as caught:
        scenario_of(path, text)
    told = str(caught.value)
    assert told.startswith(str(path)) and message in told and "\n" not in told


def test_arrivals_are_seeded_and_come_at_their_rate() -> None:
    def times(seed: str, count: int = 4000) -> list[float]:
        return list(itertools.islice(arrival_times(Poisson(8.0), seed), count))

    assert times("a") == times("a")
    assert times("a", 10) == times("a")[:10] != times("b", 10)
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times("a")])]
    assert min(gaps) > 0
    # Exponential gaps of mean 1/8: both figures have a standard error of about 1.6%.
    assert statistics.mean(gaps) == pytest.approx(1 / 8, rel=0.08)
    assert statistics.stdev(gaps) == pytest.approx(1 / 8, rel=0.12)
    burst = itertools.islice(arrival_times(Burst(3, 2.5), "a"), 7)
    assert list(burst) == [0.0] * 3 + [2.5] * 3 + [5.0]


def test_a_reply_is_timed_from_when_it_was_due(endpoint: TinyEndpoint) -> None:
    async def once() -> Any:
        async with open_session(10) as session:
            asked = [{"role": "user", "content": "hello"}]
            due = time.perf_counter() - 5.0
            return await stream_reply(session, Endpoint(endpoint.base, "tiny"), asked, 4, None, due)

    reply = asyncio.run(once())
    assert 5.0 <= reply.ttft <= reply.total
    assert reply.inter_token is not None and reply.inter_token < 1.0


def test_an_open_loop_does_not_wait_for_replies(endpoint: TinyEndpoint) -> None:
    """All come at their times although nobody is answered: the first turns hang until the end."""
    endpoint.hold_from_turn = 1
    group = Group(name="c", arrivals=Poisson(50.0), conversations=6, user_tokens=5)
    scenario = Scenario(clients=(group,))
    results = Results(1, ["c"])

    async def once() -> None:
        async with open_session(30) as session:
            routes = await find_routes(session, Endpoint(endpoint.base, "tiny"), scenario)
            running = asyncio.create_task(run_load(session, scenario, routes, results))
            for _ in range(6):
                assert await asyncio.to_thread(endpoint.held.acquire, timeout=30)
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(once())
    assert len(endpoint.bodies) == 6 and results.answers == []


def test_first_turns_are_due_when_they_should_come(endpoint: TinyEndpoint) -> None:
    group = Group(name="c", arrivals=Poisson(50.0), conversations=8, turns=2, user_tokens=5)
    results = load(endpoint, Scenario(clients=(group,), seed=5))
    first = sorted(answer.due for answer in results.answers if answer.turn == 0)
    expected = itertools.islice(arrival_times(group.arrivals, "5 c arrivals"), 8)
    assert first == pytest.approx(list(expected))
    assert [len(turn) for turn in results.by_turn] == [8, 8]


def test_waiting_counts_where_the_client_itself_is_late(endpoint, monkeypatch) -> None:
    def slow(*_: object) -> str:
        time.sleep(0.3)
        return "hello"

    monkeypatch.setattr("server.bench_load.question", slow)
    group = Group(name="c", arrivals=Burst(1, 1.0), conversations=1)
    (reply,) = load(endpoint, Scenario(clients=(group,))).replies
    assert reply.ttft >= 0.3


def test_time_ends_a_load(endpoint: TinyEndpoint, tmp_path: Path) -> None:
    text = f'duration_s = 0.5\n{ONE}\n[[clients]]\nname = "p"\n{POISSON}\n'
    scenario = scenario_of(tmp_path / "timed.toml", text)
    results = load(endpoint, scenario)
    assert results.failures == []
    assert max(answer.due for answer in results.answers) < 0.5
    groups = [answer.group for answer in results.answers]
    times = itertools.takewhile(lambda t: t < 0.5, arrival_times(Poisson(50.0), "0 p arrivals"))
    assert groups.count("p") == len(list(times))
    assert groups.count("c") > 2  # each client began anew


def test_clients_of_a_broken_server_do_not_spin(endpoint: TinyEndpoint, tmp_path: Path) -> None:
    endpoint.refusal = (503, "full")
    results = load(endpoint, scenario_of(tmp_path / "s.toml", "duration_s = 0.5\n" + ONE))
    assert [f.message for f in results.failures] == ["HTTP 503: full"] * 2
    assert results.json()["course"][0]["errors"] == 2


def test_tenants_have_their_keys_and_conversations_their_models(endpoint: TinyEndpoint) -> None:
    arrivals = Burst(4, 1.0)
    groups = (
        Group(name="a", arrivals=arrivals, conversations=4, tenant="one", models=("x", "y")),
        Group(name="b", arrivals=arrivals, conversations=4, tenant="two", models="adapters"),
        Group(name="c", arrivals=arrivals, conversations=4),
    )
    endpoint.models = [
        {"id": "base"},
        {"id": "base:u", "parent": "base"},
        {"id": "v", "parent": "base"},
    ]
    results = load(endpoint, Scenario(clients=groups), {"one": "k1", "two": "k2"})
    assert len(results.answers) == 12
    asked = sorted(zip((b["model"] for b in endpoint.bodies), endpoint.keys, strict=True))
    assert asked == sorted(
        [("x", "Bearer k1"), ("y", "Bearer k1"), ("base:u", "Bearer k2"), ("v", "Bearer k2")] * 2
        + [("base", "Bearer common")] * 4
    )


def test_a_server_without_adapters_is_told_so(endpoint: TinyEndpoint) -> None:
    group = Group(name="b", arrivals=Burst(1, 1.0), conversations=1, models="adapters")
    with pytest.raises(BenchError, match="lists no adapters for 'b'"):
        load(endpoint, Scenario(clients=(group,)))


def test_groups_may_have_a_prompt_in_common(endpoint: TinyEndpoint) -> None:
    groups = tuple(
        Group(name=name, arrivals=Burst(2, 1.0), conversations=2, system_tokens=20, prompt=prompt)
        for name, prompt in (("a", "team"), ("b", "team"), ("c", None))
    )
    load(endpoint, Scenario(clients=groups))
    systems = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert sorted(map(systems.count, set(systems))) == [2, 4]


def run(endpoint: TinyEndpoint, *args: str) -> Any:
    return CliRunner().invoke(app, ["--base", endpoint.base, *args])


def test_the_command_runs_a_file(endpoint: TinyEndpoint, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(ONE + "turns = 2\n\n[[clients]]\nname = 'd'\nconversations = 3\n" + POISSON)
    result = run(endpoint, "--scenario", str(file), "--seed", "9", "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    scenario = report["scenario"]
    assert (scenario["name"], scenario["about"], scenario["seed"]) == ("own", "one", 9)
    assert [(g["group"], g["requests"]) for g in report["by_group"]] == [("c", 4), ("d", 3)]
    assert sum(part["replies"] for part in report["course"]) == 7
    assert report["finish_reasons"] == {"length": 7}
    assert report["memory"] is None
    assert "by clients" in result.stderr


def test_memory_is_read_with_the_key_for_metrics(endpoint: TinyEndpoint) -> None:
    small = ("--agents", "1", "--turns", "1", "--system-tokens", "9", "--key", "k", "--json", "-")
    report = json.loads(run(endpoint, *small, "--metrics-key", "watcher").stdout)
    first = report["memory"][0]
    assert first.pop("at_s") >= 0
    assert first == {"active_bytes": 3_000_000, "weights_bytes": 1_501_000, "lent_bytes": 7}
    assert set(endpoint.keys) == {"Bearer k"}
    assert json.loads(run(endpoint, *small).stdout)["memory"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--scenario", "nope"), "--scenario: there is no scenario 'nope'; there are adapters, "),
        (("--scenario", "/nowhere/s.toml"), "--scenario: cannot read /nowhere/s.toml"),
        (("--scenario", "scan", "--turns", "3"), "--turns: this does not go with --scenario"),
        (("--html", "/nowhere/x.html"), "--html: there is no folder for /nowhere/x.html"),
        (("--json", "/nowhere/x.json"), "--json: there is no folder for /nowhere/x.json"),
        (("--tenant-key", "who"), "--tenant-key: write TENANT=KEY"),
        (("--duration", "1e9"), "--duration, --seed: "),
    ],
)
def test_a_wrong_option_ends_in_one_line(endpoint, args: tuple[str, ...], message: str) -> None:
    result = run(endpoint, *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"commons bench: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert endpoint.bodies == []
