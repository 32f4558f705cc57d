"""Rows of different adapters in one pass against mlx-lm with each adapter loaded alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from mlx_lm.utils import quantize_model, save

from engine.adapter_files import AdapterError, read_adapter
from engine.adapters import Adapters
from tests.adapters import ATTENTION, make_adapter, to_peft, write
from tests.engine.memory import active_bytes
from tests.models import make, model_dir

EVERYTHING = None
EXPERTS = ("mlp.switch_mlp.gate_proj", "mlp.switch_mlp.up_proj", "mlp.switch_mlp.down_proj")
MLP = ("mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj")


def alone(path, adapter, tokens):
    model, _ = load(str(path), adapter_path=str(adapter) if adapter else None)
    return np.array(model(mx.array([tokens]))[0])


def compare(path, adapters, length=5, seed=0, tolerance=1e-4):
    """Every adapter and none, twice each, in an order of their own, in one batch."""
    model, _ = load(str(path))
    owner = Adapters(model)
    for name, adapter in adapters.items():
        owner.add(name, read_adapter(adapter, owner.modules))
    rng = np.random.default_rng(seed)
    rows = [*adapters, None, *adapters, None]
    rng.shuffle(rows)
    tokens = rng.integers(3, 500, (len(rows), length)).tolist()
    with owner.using(rows):
        together = np.array(model(mx.array(tokens)))
    changed = 0
    for row, own, logits in zip(rows, tokens, together, strict=True):
        expected = alone(path, adapters.get(row), own)
        np.testing.assert_allclose(logits, expected, atol=tolerance * np.abs(expected).max())
        changed += row is not None and not np.allclose(logits, alone(path, None, own), atol=1e-2)
    assert changed == 2 * len(adapters), "an adapter without effect shows nothing"
    return owner, model


def test_mixed_ranks_and_modules_in_one_batch(tmp_path):
    path = model_dir("qwen3")
    adapters = {
        "a": make_adapter(path, tmp_path / "a", seed=1, rank=8),
        "b": make_adapter(path, tmp_path / "b", seed=2, rank=8, scale=0.5),
        "c": make_adapter(path, tmp_path / "c", seed=3, rank=4, keys=MLP),
        "d": make_adapter(path, tmp_path / "d", seed=4, rank=3, keys=EVERYTHING, layers=1),
    }
    owner, _ = compare(path, adapters)
    own = sum(
        u.nbytes
        for folder in adapters.values()
        for u in read_adapter(folder, owner.modules).values()
    )
    assert own <= owner.nbytes <= 1.01 * own


@pytest.mark.parametrize("length", [1, 2, 40])  # below and above where experts sort their input
def test_experts(tmp_path, length):
    path = model_dir("qwen3_next")
    adapters = {
        "a": make_adapter(path, tmp_path / "a", seed=1, keys=EXPERTS),
        "b": make_adapter(path, tmp_path / "b", seed=2, keys=(*EXPERTS[:1], *ATTENTION)),
    }
    compare(path, adapters, length)


def test_a_prompt_of_one_row_through_experts(tmp_path):
    path = model_dir("qwen3_next")
    adapter = make_adapter(path, tmp_path / "a", seed=1, keys=EXPERTS)
    model, _ = load(str(path))
    owner = Adapters(model)
    owner.add("a", read_adapter(adapter, owner.modules))
    tokens = list(range(10, 90))
    with owner.using(["a"]):
        ours = np.array(model(mx.array([tokens]))[0])
    np.testing.assert_allclose(ours, alone(path, adapter, tokens), atol=1e-4)


def test_tied_embedding(tmp_path):
    path = make("qwen3", tmp_path / "tied", tie_word_embeddings=True)
    keys = ("model.embed_tokens", *ATTENTION)
    adapters = {"a": make_adapter(path, tmp_path / "a", seed=1, keys=keys)}
    compare(path, adapters)


def test_quantised_base(tmp_path):
    source = model_dir("qwen3")
    model, tokenizer, config = load(str(source), return_config=True)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    save(tmp_path / "q4", source, model, tokenizer, config)
    adapters = {
        "a": make_adapter(tmp_path / "q4", tmp_path / "a", seed=1),
        "b": make_adapter(tmp_path / "q4", tmp_path / "b", seed=2, rank=4, keys=MLP),
    }
    compare(tmp_path / "q4", adapters)


@pytest.mark.parametrize("slora", [False, True])
def test_peft_format(tmp_path, slora):
    path = model_dir("llama")
    theirs = make_adapter(path, tmp_path / "mlx", seed=1, rank=4, scale=1.0)
    changes = {"use_rslora": True, "lora_alpha": 2.0} if slora else {}
    peft = to_peft(theirs, tmp_path / "peft", **changes)
    model, _ = load(str(path))
    owner = Adapters(model)
    owner.add("p", read_adapter(peft, owner.modules))
    tokens = list(range(20, 40))
    with owner.using(["p"]):
        ours = np.array(model(mx.array([tokens]))[0])
    np.testing.assert_allclose(ours, alone(path, theirs, tokens), atol=1e-4)


def test_leaving_adapters_leave_nothing(tmp_path):
    path = model_dir("qwen3")
    model, _ = load(str(path))
    owner = Adapters(model)
    folders = [make_adapter(path, tmp_path / str(i), seed=i, rank=4 + i % 2) for i in range(5)]
    before = active_bytes()
    for i, folder in enumerate(folders):
        owner.add(str(i), read_adapter(folder, owner.modules))
    assert owner.nbytes > 0
    for i in (2, 0, 4):
        owner.remove(str(i))
    tokens = list(range(30, 50))
    with owner.using(["3", None, "1"]):
        ours = np.array(model(mx.array([tokens] * 3)))
    for row, which in zip(ours, (folders[3], None, folders[1]), strict=True):
        np.testing.assert_allclose(row, alone(path, which, tokens), atol=1e-4)
    owner.remove("1")
    owner.remove("3")
    assert owner.nbytes == 0
    assert active_bytes() - before < 4096


@pytest.mark.usefixtures("exact_count")
def test_fifty_adapters_take_their_own_weights(tmp_path):
    path = model_dir("qwen3")
    model, _ = load(str(path))
    owner = Adapters(model)
    folders = [make_adapter(path, tmp_path / str(r), seed=r, rank=r) for r in (4, 8, 16, 32, 64)]
    before, own = active_bytes(), 0
    for i in range(50):
        updates = read_adapter(folders[i % 5], owner.modules)
        own += sum(u.nbytes for u in updates.values())
        owner.add(str(i), updates)
    del updates
    assert active_bytes() - before <= 1.05 * own


def weights(path):
    return dict(mx.load(str(path / "adapters.safetensors")))


def config(path):
    import json

    return json.loads((path / "adapter_config.json").read_text())


def broken(name, path, out):
    """A directory with one thing wrong, and what the refusal must say."""
    w, c = weights(path), config(path)
    first = sorted(w)[0]
    if name == "nan":
        w[first] = w[first] * float("nan")
        said = "not finite"
    elif name == "shape":
        w[first] = w[first][:-1]
        said = "another base's"
    elif name == "module":
        w = {k.replace("q_proj", "r_proj"): v for k, v in w.items()}
        said = "no module"
    elif name == "half":
        del w[first]
        said = "missing"
    elif name == "integers":
        w[first] = w[first].astype(mx.int32)
        said = "type"
    elif name == "dora":
        c["fine_tune_type"] = "dora"
        said = "dora"
    elif name == "full":
        c["fine_tune_type"] = "full"
        said = "mlx_lm.fuse"
    elif name == "scale":
        c["lora_parameters"].pop("scale")
        said = "scale"
    else:
        raise AssertionError(name)
    return write(out, "adapters.safetensors", w, c), said


@pytest.mark.parametrize(
    "name", ["nan", "shape", "module", "half", "integers", "dora", "full", "scale"]
)
def test_what_does_not_fit_is_refused_with_the_file_and_the_reason(tmp_path, name):
    path = model_dir("qwen3")
    good = make_adapter(path, tmp_path / "good", seed=1)
    folder, said = broken(name, good, tmp_path / "bad")
    model, _ = load(str(path))
    with pytest.raises(AdapterError) as error:
        read_adapter(folder, Adapters(model).modules)
    assert said in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_unsafe_files_are_refused(tmp_path):
    modules = Adapters(load(str(model_dir("qwen3")))[0]).modules
    with pytest.raises(AdapterError, match="no such"):
        read_adapter(tmp_path / "nowhere", modules)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapters.npz").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"adapters\.npz"):
        read_adapter(tmp_path, modules)
    (tmp_path / "adapters.safetensors").write_bytes(b"garbage")
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"scale": 1}}')
    with pytest.raises(AdapterError, match="cannot read"):
        read_adapter(tmp_path, modules)


@pytest.mark.parametrize("key", ["use_dora", "modules_to_save", "bias"])
def test_what_peft_can_and_we_cannot_is_refused_by_name(tmp_path, key):
    path = model_dir("llama")
    theirs = make_adapter(path, tmp_path / "mlx", seed=1)
    peft = to_peft(theirs, tmp_path / "peft", **{key: "all"})
    modules = Adapters(load(str(path))[0]).modules
    with pytest.raises(AdapterError, match="bias" if key == "bias" else key):
        read_adapter(peft, modules)
