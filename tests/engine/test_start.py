"""A model in pieces: what each of them takes, what it asks for, and that nothing is left behind."""

from __future__ import annotations

import gc
import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
from mlx.utils import tree_flatten

from engine import weights
from engine.loader import LoadError
from engine.model_memory import ModelMemory
from engine.options import EngineOptions
from engine.pieces import Weights, background, finish
from engine.start import starting
from engine.variant import Variant
from tests.adapters import make_adapter
from tests.engine.memory import active_bytes
from tests.models import loaded, make, model_dir

MIB = 1 << 20


def pieces(path: Path, memory: ModelMemory, draft: Path | None = None):
    more = {} if draft is None else {"draft_model": str(draft), "draft_name": "small"}
    return starting(EngineOptions(str(path), **more), memory, lambda _: None)


def granted(work, space: ModelMemory):
    """Runs all pieces; what came of them, and what was asked for."""
    asked: list[int] = []

    def grant(size: int) -> None:
        asked.append(size)
        space.settle(size)

    return finish(work, grant), asked


def memory() -> ModelMemory:
    return ModelMemory(None, 64 * MIB, several=False)


class Clock:
    """Reading takes so many seconds a byte; told by what became active."""

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.base = active_bytes()

    def __call__(self) -> float:
        return (active_bytes() - self.base) * self.pace


def test_weights_come_in_groups_that_take_a_bounded_time(monkeypatch, tmp_path):
    path = make("qwen3", tmp_path / "model", seed=3, hidden_size=256, num_hidden_layers=16)
    network = lazily(path)
    total = weights.nbytes(network)
    largest = max(v.nbytes for _, v in tree_flatten(network.parameters()))
    monkeypatch.setattr(weights, "FIRST_GROUP", MIB // 4)
    monkeypatch.setattr(weights, "LEAST_GROUP", MIB // 4)
    before = active_bytes()
    # A mebibyte in PIECE_SECONDS.
    reading = weights.bring_in(network, Clock(weights.PIECE_SECONDS / MIB))
    sizes = []
    for _ in reading:
        sizes.append(active_bytes() - before - sum(sizes))
    assert abs(sum(sizes) - total) < 0.05 * total
    assert len(sizes) > 5
    assert max(sizes) <= MIB + largest
    assert max(sizes) >= 0.95 * MIB, "it does not adapt to how fast they come"


def lazily(path: Path):
    from mlx_lm.utils import load_model as read

    network, _ = read(path, lazy=True)
    return network


def test_memory_is_asked_for_before_any_weight_is_read():
    work = pieces(model_dir("qwen3"), memory())
    before = active_bytes()
    for piece in work:
        if isinstance(piece, Future):
            piece.exception()
        if isinstance(piece, Weights):
            break
    assert active_bytes() - before < 1 << 14
    assert piece.nbytes == weights.nbytes(loaded("qwen3").model)
    work.close()


def test_the_check_and_the_calibration_come_in_pieces_too():
    space = memory()
    work = pieces(model_dir("qwen3"), space)
    after = 0
    while True:
        try:
            piece = next(work)
        except StopIteration as end:
            started = end.value
            break
        if isinstance(piece, Future):
            piece.exception()
        elif isinstance(piece, Weights):
            space.settle(piece.nbytes)
            after = 0
        after += 1
    assert after > 30
    assert started.engine.attention == "lent"
    started.engine.close()


@pytest.mark.usefixtures("exact_count")
@pytest.mark.parametrize("stop", ["abandoned", "no tokenizer", "no memory"])
def test_a_load_that_comes_to_nothing_leaves_nothing(tmp_path, stop):
    path = shutil.copytree(model_dir("qwen3"), tmp_path / "model")
    if stop == "no tokenizer":
        (path / "tokenizer.json").unlink()
        (path / "tokenizer_config.json").write_text("{")
    kv = 1 if stop == "no memory" else 64 * MIB  # too little for a single token
    before = active_bytes()
    gc.disable()
    try:
        space = ModelMemory(None, kv, several=False)
        if stop == "abandoned":
            work = pieces(path, space)
            for _ in range(25):
                piece = next(work)
                if isinstance(piece, Future):
                    piece.exception()
                elif isinstance(piece, Weights):
                    space.settle(piece.nbytes)
            assert active_bytes() - before > MIB // 2
            work.close()
            del work, piece
        else:
            with pytest.raises(LoadError, match="tokenizer" if kv > 1 else "--kv-memory"):
                finish(pieces(path, space), space.settle)
        # Of a check that broke off, a few blocks of its tree are left to the garbage collector.
        assert active_bytes() - before < (MIB // 4 if stop == "abandoned" else 1 << 14)
    finally:
        gc.enable()


@pytest.mark.usefixtures("exact_count")
def test_an_engine_with_an_adapter_gives_its_memory_back(tmp_path):
    adapter = make_adapter(model_dir("qwen3"), tmp_path / "a", seed=1)
    space = memory()
    warm = finish(pieces(model_dir("qwen3"), space), space.settle)
    warm.engine.close()
    del warm
    gc.collect()
    before = active_bytes()
    gc.disable()
    try:
        space = memory()
        engine = finish(pieces(model_dir("qwen3"), space), space.settle).engine
        engine.adapters.register("a", adapter)
        engine.close()
        assert active_bytes() - before < 1 << 14
    finally:
        gc.enable()


def test_a_draft_is_asked_for_with_its_model_and_comes_in_pieces():
    space = memory()
    work = pieces(model_dir("qwen3"), space, model_dir("llama"))
    before = active_bytes()
    for piece in work:
        if isinstance(piece, Future):
            piece.exception()
        if isinstance(piece, Weights):
            break
    assert active_bytes() - before < 1 << 14
    both = [weights.nbytes(loaded(family).model) for family in ("qwen3", "llama")]
    assert piece.nbytes == sum(both)
    work.close()
    count = sum(1 for _ in pieces(model_dir("qwen3"), memory(), model_dir("llama")))
    assert count > 100
    started, asked = granted(pieces(model_dir("qwen3"), space, model_dir("llama")), space)
    assert asked == [started.weights] == [sum(both)]
    assert started.drafts.names == ("small", "ngram")
    assert started.engine.decoding.speculation is not None
    assert started.engine.used == 0
    assert started.engine.namespace(Variant(draft="small")).draft
    started.engine.close()


@pytest.mark.parametrize(("family", "reason"), [("gemma3", "window"), ("deepseek_v3", "own way")])
def test_a_draft_of_no_use_is_not_read(family, reason):
    space = memory()
    started, asked = granted(pieces(model_dir(family), space, model_dir("llama")), space)
    assert reason in started.drafts.off
    assert started.drafts.names == ()
    assert started.weights == weights.nbytes(loaded(family).model) <= asked[0]
    assert started.engine.drafter is None
    started.engine.close()


def test_a_draft_that_does_not_fit_is_this_loads_failure():
    space = memory()
    with pytest.raises(LoadError, match="cannot be a draft"):
        granted(pieces(model_dir("qwen3"), space, model_dir("gemma3")), space)


def test_the_background_hands_over_results_and_errors():
    assert background(lambda: 3).result(10) == 3

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        background(fails).result(10)


def test_memory_is_divided_between_weights_and_kv():
    alone = ModelMemory(1000 * MIB, None, several=False)
    alone.settle(400 * MIB)
    assert alone.kv.limit == 600 * MIB
    several = ModelMemory(1000 * MIB, None, several=True)
    several.settle(400 * MIB)
    assert several.kv.limit == 300 * MIB
    assert several.lacking(300 * MIB) == 0
    assert several.lacking(301 * MIB) == MIB
    several.take(200 * MIB)
    assert several.lacking(300 * MIB) == 200 * MIB
    several.give_back(200 * MIB)
    assert several.lacking(300 * MIB) == 0
    given = ModelMemory(1000 * MIB, 500 * MIB, several=True)
    given.settle(400 * MIB)
    assert (given.kv.limit, given.lacking(100 * MIB)) == (500 * MIB, 0)


@pytest.mark.parametrize(("total", "kv"), [(300, None), (1000, 700)])
def test_a_memory_that_the_main_model_does_not_fit_is_refused(total, kv):
    small = ModelMemory(total * MIB, kv and kv * MIB, several=True)
    with pytest.raises(LoadError, match="--memory is too small"):
        small.settle(400 * MIB)
