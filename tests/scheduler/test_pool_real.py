"""The pool over real models: one is loaded in pieces while another one's stream goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from engine.model_memory import ModelMemory
from engine.params import SamplingParams
from engine.pieces import Pieces
from scheduler.door import Door, Hold
from scheduler.events import Event, Token
from scheduler.info import ModelConfig, ServiceConfig
from scheduler.live import Live, going_live
from scheduler.members import Change, Member
from scheduler.pool import ModelPool
from scheduler.request import Request
from scheduler.stats import NO_STATS
from tests.models import model_dir
from tests.oracle import Oracle, compare

KV = 64 << 20  # bytes
NAMES = {"main": "qwen3", "b": "llama"}
CONFIG = ServiceConfig(
    model="",
    served_model_name="main",
    stall_target_ms=20.0,
    models=(ModelConfig("b", ""),),
)


class Bench:
    """A pool that is stepped by hand; every turn takes one second of its clock."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.changes: list[Change] = []
        self.tokens: dict[str, list[int]] = {}
        self.memory = ModelMemory(None, KV, several=True)
        ticks = itertools.count()
        configs = [
            ModelConfig(name, str(model_dir(family)), keep_loaded=name == "main")
            for name, family in NAMES.items()
        ]
        self.pool = ModelPool(
            [Member(config, Door()) for config in configs],
            self.open,
            self.memory,
            self.changes.append,
            lambda: None,
            lambda: float(next(ticks)),
        )
        self.pool.start()
        self.log.clear()

    def open(self, member: Member) -> Pieces[Live]:
        work = going_live(
            member.config, member.adapters, CONFIG, self.memory, NO_STATS, lambda _: None
        )
        while True:
            try:
                piece = next(work)
            except StopIteration as end:
                return end.value
            self.log.append("piece")
            yield piece

    def step(self) -> list[Event]:
        events = self.pool.step()
        for event in events:
            if isinstance(event, Token):
                self.log.append(event.request_id)
                self.tokens.setdefault(event.request_id, []).append(event.token)
        return events

    def submit(self, model: str, name: str, prompt: list[int], tokens: int) -> None:
        hold = Hold()
        assert self.pool.members[model].door.enter(hold)
        greedy = SamplingParams(temperature=0.0)
        self.pool.add(Request(name, tuple(prompt), tokens, greedy, model=model))
        self.pool.leave(model, hold)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    yield Bench()


def test_a_stream_goes_on_between_any_two_pieces_of_a_load(bench: Bench) -> None:
    bench.submit("main", "stream", [7, 8, 9], 7000)
    while "stream" not in bench.log:
        bench.step()
    bench.log.clear()
    bench.pool.want("b", Hold())
    while bench.pool.members["b"].live is None:
        assert bench.pool.has_work
        bench.step()
    assert bench.log.count("piece") > 30
    assert "piece piece" not in " ".join(bench.log)


def test_both_then_reply_as_each_alone_would(bench: Bench) -> None:
    prompts = {"b": [list(range(50, 120)), list(range(9, 29))], "main": [list(range(200, 290))]}
    for model, texts in prompts.items():
        for i, prompt in enumerate(texts):
            bench.submit(model, f"{model}{i}", prompt, 20)
    waiting = {f"{model}{i}" for model, texts in prompts.items() for i in range(len(texts))}
    bench.pool.abort("stream")
    while bench.pool.has_work:
        bench.step()
    assert waiting <= bench.tokens.keys()
    for model, texts in prompts.items():
        oracle = Oracle(model_dir(NAMES[model]))
        for i, prompt in enumerate(texts):
            cold = oracle.cold(prompt, 20)
            assert compare(bench.tokens[f"{model}{i}"], cold).kind in ("same", "tie")
    stream = bench.tokens["stream"]
    cold = Oracle(model_dir("qwen3")).cold([7, 8, 9], len(stream))
    assert compare(stream, cold).kind in ("same", "tie")
