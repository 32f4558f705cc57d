"""Adapters that come into memory when a row needs them, and leave it for others."""

from __future__ import annotations

import shutil
from array import array
from pathlib import Path

import pytest

from cache.namespace import weights_digest
from engine.adapter_files import AdapterError
from engine.engine import Engine
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling
from engine.variant import Variant
from tests.adapters import make_adapter
from tests.models import load_model, model_dir

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    path = model_dir("qwen3")
    return {
        name: make_adapter(path, tmp_path / name, seed=seed, rank=4)
        for seed, name in enumerate("abc")
    }


def engine(folders: dict[str, Path], slots: int) -> Engine:
    made = Engine(load_model(model_dir("qwen3")), kv_memory=1 << 34, adapter_slots=slots)
    for name, folder in folders.items():
        made.adapters.register(name, folder)
    return made


def start(made: Engine, adapter: str | None, tokens=range(20, 60)) -> Row | None:
    prompt = array("i", tokens)
    row = made.admit(
        "x", prompt, RowSampling(GREEDY, prompt, made.vocab_size), (), Variant(adapter)
    )
    while row is not None and row.remaining:
        made.prefill(row, 512)
    return row


def resident(made: Engine) -> set[str]:
    return {s.name for s in made.adapters.states() if s.resident}


def test_the_least_recently_used_leaves_for_what_a_row_needs(folders):
    made = engine(folders, slots=2)
    assert resident(made) == {"b", "c"}
    for adapter, left in (("b", {"b", "c"}), ("a", {"a", "b"}), ("c", {"a", "c"})):
        row = start(made, adapter)
        assert row is not None
        made.release(row)
        assert resident(made) == left


def test_an_adapter_with_rows_stays_and_one_more_waits(folders):
    made = engine(folders, slots=2)
    rows = [start(made, "a"), start(made, "b", range(30, 50))]
    assert start(made, "c") is None
    assert {s.name: s.rows for s in made.adapters.states()} == {"a": 1, "b": 1, "c": 0}
    made.release(rows[0])
    row = start(made, "c")
    assert row is not None
    assert resident(made) == {"b", "c"}


def test_a_pinned_one_stays(folders):
    made = engine(folders, slots=2)
    made.adapters.pin("a", True)
    for adapter in "bcb":
        made.release(start(made, adapter))
        assert "a" in resident(made)
    made.adapters.pin("b", True)
    with pytest.raises(AdapterError, match="no slot"):
        made.adapters.pin("c", True)
    assert start(made, "c") is None
    made.adapters.pin("a", False)
    assert start(made, "c") is not None


def test_a_pinned_newcomer_without_a_slot_is_not_kept(folders, tmp_path):
    made = engine({"a": folders["a"]}, slots=1)
    made.adapters.pin("a", True)
    with pytest.raises(AdapterError, match="no slot"):
        made.adapters.register("b", folders["b"], pinned=True)
    assert [s.name for s in made.adapters.states()] == ["a"]


def test_kv_of_one_adapter_is_not_that_of_another(folders):
    made = engine(folders, slots=3)
    for adapter in ("a", None, "b"):
        row = start(made, adapter)
        assert row.length == 39
        made.release(row)
    assert made.input_tokens == 3 * 39
    assert [
        made.lookup(array("i", range(20, 60)), Variant(a)).length for a in (None, "a", "b", "c")
    ] == [*(39, 39, 39, 0)]


def test_two_names_for_the_same_files_share_kv_until_both_are_gone(folders):
    made = engine({"a": folders["a"], "b": folders["a"]}, slots=2)
    made.release(start(made, "a"))
    assert made.lookup(array("i", range(20, 60)), Variant("b")).length == 39
    made.adapters.unregister("a")
    assert made.lookup(array("i", range(20, 60)), Variant("b")).length == 39
    made.adapters.unregister("b")
    assert made.used == 0


def test_replaced_files_never_meet_old_kv(folders):
    made = engine(folders, slots=1)
    made.release(start(made, "a"))
    assert made.lookup(array("i", range(20, 60)), Variant("a")).length == 39
    shutil.rmtree(folders["a"])
    shutil.copytree(folders["b"], folders["a"])
    made.release(start(made, "c"))  # takes a's slot, so that a is read anew
    row = start(made, "a")
    assert row is not None
    assert row.cache is made.forest.of(made.namespace(Variant("a")))
    assert made.namespace(Variant("a")).adapter == weights_digest(folders["b"])
    assert made.input_tokens == 3 * 39, "the new a computed its prompt"


def test_files_that_have_gone_bad_refuse_the_row_and_nothing_else(folders):
    made = engine(folders, slots=1)
    made.release(start(made, "b"))
    (folders["a"] / "adapters.safetensors").write_bytes(b"garbage")
    with pytest.raises(AdapterError, match="cannot read"):
        start(made, "a")
    assert start(made, "b") is not None
    assert {s.name: s.rows for s in made.adapters.states()} == {"a": 0, "b": 1, "c": 0}


def test_a_taken_name_is_refused(folders):
    made = engine(folders, slots=2)
    with pytest.raises(AdapterError, match="already"):
        made.adapters.register("a", folders["b"])
