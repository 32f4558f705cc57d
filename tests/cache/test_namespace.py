"""Digests of model directories and the names made of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cache.namespace import SAMPLE, SAMPLES, WHOLE, Namespace, weights_digest

MTIME = 1_700_000_000_123_456_789
LARGE = "model.safetensors"


def header_bytes(dtype: str) -> bytes:
    header = json.dumps({"w": {"dtype": dtype, "shape": [3], "data_offsets": [0, 12]}}).encode()
    return len(header).to_bytes(8, "little") + header


def write_large(path: Path, start: bytes = b"", size: int = WHOLE + 4096) -> None:
    """A sparse file, by default too large to be read whole, with a fixed modification time."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    os.utime(path, ns=(MTIME, MTIME))


def poke(path: Path, position: int, value: bytes) -> None:
    """Changes bytes in place and puts the modification time back."""
    with path.open("r+b") as file:
        file.seek(position)
        file.write(value)
    os.utime(path, ns=(MTIME, MTIME))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"layers": 2}')
    write_large(directory / LARGE, header_bytes("F32"))
    return directory


def test_namespaces_differ_in_every_part():
    base = Namespace("m")
    assert base == ("m", "", "", "default")
    others = [base._replace(**{field: "x"}) for field in base._fields]
    assert len({base, *others}) == 5


def test_digest_is_32_hex_digits_and_repeatable(model):
    digest = weights_digest(model)
    assert len(digest) == 32
    assert int(digest, 16) >= 0
    assert weights_digest(model) == digest


def test_a_copy_elsewhere_under_another_name_has_the_same_digest(model, tmp_path):
    shutil.copytree(model, tmp_path / "other")  # copies modification times
    assert weights_digest(tmp_path / "other") == weights_digest(model)


def test_small_files_count_by_content_alone(model):
    before = weights_digest(model)
    os.utime(model / "config.json", ns=(1, 1))
    assert weights_digest(model) == before
    stat = (model / "config.json").stat()
    (model / "config.json").write_text('{"layers": 3}')
    os.utime(model / "config.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights_digest(model) != before


def test_a_small_weight_file_counts_to_every_byte_and_without_its_time(model):
    small = model / "small.safetensors"
    write_large(small, size=WHOLE)
    before = weights_digest(model)
    os.utime(small, ns=(1, 1))
    assert weights_digest(model) == before
    poke(small, (WHOLE - SAMPLE) // (SAMPLES - 1) - 1, b"\1")  # between two samples
    assert weights_digest(model) != before


def test_the_digest_of_the_same_files_is_the_same_on_every_machine(tmp_path):
    for i in range(20):  # more than any file system lists in order by chance
        (tmp_path / f"{i * 7 % 20:02}.json").write_text(str(i))
    assert weights_digest(tmp_path) == "853b7fb49e07a4c3b0f6bd512aefb37e"


def test_a_large_file_rewritten_alike_counts_by_its_time(model):
    before = weights_digest(model)
    os.utime(model / LARGE, ns=(MTIME, MTIME + 1))
    assert weights_digest(model) != before


def test_a_large_file_counts_by_its_size(model):
    before = weights_digest(model)
    write_large(model / LARGE, header_bytes("F32"), WHOLE + 4097)
    assert weights_digest(model) != before


def test_header_and_samples_tell_files_of_equal_size_and_time_apart(model):
    large = model / LARGE
    size = large.stat().st_size
    digests = {weights_digest(model)}
    places = [(size - SAMPLE) * i // (SAMPLES - 1) for i in range(SAMPLES)]
    for place in [places[1], places[4], size - 1]:
        poke(large, place, b"\7")
        digests.add(weights_digest(model))
    write_large(large, header_bytes("I32"))
    digests.add(weights_digest(model))
    assert len(digests) == 5


def test_a_header_beyond_the_first_sample_counts_in_full(model):
    header = b" " * (2 * SAMPLE)
    write_large(model / LARGE, len(header).to_bytes(8, "little") + header)
    before = weights_digest(model)
    poke(model / LARGE, 8 + SAMPLE + 5, b"x")
    assert weights_digest(model) != before


@pytest.mark.parametrize("length", [2**64 - 1, WHOLE * 4])
def test_a_false_header_length_is_no_error(model, length):
    write_large(model / LARGE, length.to_bytes(8, "little"))
    assert len(weights_digest(model)) == 32


def test_added_removed_renamed_and_swapped_files_count(model):
    (model / "a.json").write_text("1")
    (model / "b.json").write_text("2")
    digests = [weights_digest(model)]
    (model / "a.json").write_text("2")
    (model / "b.json").write_text("1")
    digests.append(weights_digest(model))
    (model / "b.json").rename(model / "c.json")
    digests.append(weights_digest(model))
    (model / "c.json").unlink()
    digests.append(weights_digest(model))
    (model / "sub").mkdir()
    (model / "a.json").rename(model / "sub" / "a.json")
    digests.append(weights_digest(model))
    assert len(set(digests)) == 5


def test_contents_do_not_run_together(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a").write_text("xb")
    (one / "c").write_text("")
    (two / "a").write_text("x")
    (two / "bc").write_text("")
    assert weights_digest(one) != weights_digest(two)


def test_hidden_files_bytecode_and_empty_directories_do_not_count(model):
    before = weights_digest(model)
    for name in [".cache/huggingface/x.metadata", "__pycache__/m.pyc", ".gitattributes"]:
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (model / "empty").mkdir()
    (model / "dangling").symlink_to(model / "nowhere")
    assert weights_digest(model) == before


def test_a_link_counts_by_the_file_it_leads_to(model, tmp_path):
    for name, text in [("blob1", '{"layers": 2}'), ("blob2", '{"layers": 4}')]:
        (tmp_path / name).write_text(text)
    before = weights_digest(model)
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(tmp_path / "blob1")
    assert weights_digest(model) == before
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(tmp_path / "blob2")
    assert weights_digest(model) != before


def test_a_hidden_directory_can_be_the_model_itself(model):
    hidden = model.parent / ".hidden"
    before = weights_digest(model)
    model.rename(hidden)
    assert weights_digest(hidden) == before


@pytest.mark.parametrize("name", ["absent", "model/config.json"])
def test_what_is_no_directory_is_refused(model, name):
    with pytest.raises(NotADirectoryError, match=name):
        weights_digest(model.parent / name)
