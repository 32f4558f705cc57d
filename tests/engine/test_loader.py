"""What is wrong with a model directory is said in one line that tells what to do."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from engine import device
from engine.loader import LoadError, load
from tests.models import CONTEXT, VOCABULARY, model_dir


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(model_dir("qwen3"), tmp_path / "model")


def read(path, **options):
    defaults = {
        "dtype": None,
        "trust_remote_code": False,
        "max_context": None,
        "progress": lambda _: None,
    }
    return load(str(path), **(defaults | options))


def refusal(path, **options) -> str:
    with pytest.raises(LoadError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 700
    return message


def edit(path, **changes) -> None:
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_whole_directory_loads(directory):
    loaded = read(directory)
    assert loaded.vocab_size == VOCABULARY
    assert loaded.max_context == CONTEXT
    assert loaded.eos_token_ids == {2}
    assert loaded.path == directory
    assert read(directory, max_context=100).max_context == 100
    assert read(directory, max_context=10 * CONTEXT).max_context == CONTEXT


@pytest.mark.parametrize(("name", "dtype"), [("float16", mx.float16), ("bfloat16", mx.bfloat16)])
def test_weights_are_cast_as_asked(directory, name, dtype):
    parameters = dict(tree_flatten(read(directory, dtype=name).model.parameters()))
    assert {x.dtype for x in parameters.values()} == {dtype}


def test_half_precision_is_remarked_upon_where_it_is_slow(directory):
    weights = mx.load(str(directory / "model.safetensors"))
    halved = {name: x.astype(mx.bfloat16) for name, x in weights.items()}
    mx.eval(halved)
    mx.save_safetensors(str(directory / "model.safetensors"), halved, {"format": "mlx"})
    said: list[str] = []
    read(directory, progress=said.append)
    slow = device.describe().backend == "cpu"
    assert any("bfloat16" in line and "--dtype" in line for line in said) == slow


def test_no_such_directory(tmp_path):
    assert "no such directory" in refusal(tmp_path / "missing")


def test_a_file_instead_of_a_directory(directory):
    assert "is a file" in refusal(directory / "config.json")


def test_no_config(directory):
    (directory / "config.json").unlink()
    assert "config.json" in refusal(directory)


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00"])
def test_a_config_that_cannot_be_read(directory, text):
    (directory / "config.json").write_text(text)
    assert "config.json" in refusal(directory)


@pytest.mark.parametrize("kind", [None, 7])
def test_no_model_type(directory, kind):
    edit(directory / "config.json", model_type=kind)
    assert "model_type" in refusal(directory)


def test_an_unknown_model_type(directory):
    edit(directory / "config.json", model_type="perceptron")
    assert "'perceptron'" in refusal(directory)


def test_code_that_comes_with_a_model_is_not_run(directory):
    (directory / "own.py").write_text("raise SystemExit('it was run')")
    edit(directory / "config.json", model_file="own.py")
    assert "--trust-remote-code" in refusal(directory)


def test_no_weights(directory):
    (directory / "model.safetensors").unlink()
    assert "has no model*.safetensors:" in refusal(directory)


def test_only_pickled_weights(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    message = refusal(directory)
    assert "pytorch_model.bin" in message
    assert "convert" in message


def test_a_missing_shard(directory):
    (directory / "model.safetensors").rename(directory / "model-00001-of-00003.safetensors")
    names = {f"w{i}": f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    message = refusal(directory)
    assert "model-00002-of-00003.safetensors and 1 more of 3" in message


def test_a_truncated_file(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert str(directory) in refusal(directory) or "weights" in refusal(directory)


def test_a_missing_tensor(directory):
    weights = mx.load(str(directory / "model.safetensors"))
    mx.eval(weights)
    weights.pop("lm_head.weight")
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    assert "lm_head.weight" in refusal(directory)


def test_weights_of_another_shape(directory):
    edit(directory / "config.json", hidden_size=32)
    assert "do not belong together" in refusal(directory)


def test_no_tokenizer(directory):
    (directory / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(directory)


def test_an_unknown_dtype(directory):
    assert "float32" in refusal(directory, dtype="int4")
