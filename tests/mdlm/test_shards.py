"""What is told from the headers of a checkpoint's files, and what is refused by them alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from purifier.errors import CheckpointError
from purifier.mdlm.shards import INDEX, SINGLE, count_values, listed, read_header, stored_tensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(4, dtype=torch.float64),
}
SHARDS = {"x.safetensors": ("a", "b"), "y.safetensors": ("c",)}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for file, names in SHARDS.items():
        save_file({name: TENSORS[name] for name in names}, tmp_path / file)
    write_index(tmp_path, {name: file for file, names in SHARDS.items() for name in names})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.view(-1).view(torch.uint8).numpy().tobytes()


def test_places_of_tensors(sharded: Path) -> None:
    found = stored_tensors(sharded)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        stored = found[name]
        assert (stored.dtype, stored.shape) == (tensor.dtype, tuple(tensor.shape))
        assert stored.n_values == tensor.numel()
        with stored.file.open("rb") as stream:
            stream.seek(stored.start)
            assert stream.read(stored.n_bytes) == bytes_of(tensor)


def test_order_is_that_of_the_disk(sharded: Path) -> None:
    found = list(stored_tensors(sharded).values())
    assert found == sorted(found, key=lambda tensor: (tensor.file.name, tensor.start))


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    assert stored_tensors(tmp_path).keys() == TENSORS.keys()
    assert count_values(tmp_path) == 15


def test_numbers_are_counted_over_all_files(sharded: Path) -> None:
    assert count_values(sharded) == 15


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors"):
        stored_tensors(tmp_path)


def test_a_shard_that_is_missing(sharded: Path) -> None:
    (sharded / "y.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks y\.safetensors"):
        stored_tensors(sharded)


@pytest.mark.parametrize("missing", [1, 16, 1024])
def test_a_shard_that_is_cut_short(sharded: Path, missing: int) -> None:
    save_file({"c": torch.zeros(512, dtype=torch.float64)}, sharded / "y.safetensors")
    content = (sharded / "y.safetensors").read_bytes()
    (sharded / "y.safetensors").write_bytes(content[:-missing])
    with pytest.raises(CheckpointError, match=r"y\.safetensors is damaged, cut short"):
        stored_tensors(sharded)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "z.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"z\.safetensors is damaged"):
        read_header(file)


def test_numbers_that_are_no_weights(tmp_path: Path) -> None:
    save_file({"counts": torch.zeros(3, dtype=torch.int64)}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match="counts is stored as I64"):
        stored_tensors(tmp_path)


def test_an_index_that_names_a_tensor_twice(sharded: Path) -> None:
    (sharded / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    with pytest.raises(CheckpointError, match="names a twice"):
        stored_tensors(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"c": TENSORS["c"], "a": TENSORS["a"]}, sharded / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"more than one shard, y\.safetensors among them: a"):
        stored_tensors(sharded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": "x.safetensors"}, r"not in the shards: d \(in x\.safetensors\)"),
        ({"a": "y.safetensors"}, r"not where the index says: a \(in x\.safetensors\)"),
    ],
)
def test_an_index_and_shards_that_disagree(
    sharded: Path, changes: dict[str, str], message: str
) -> None:
    weight_map = {name: file for file, names in SHARDS.items() for name in names}
    write_index(sharded, {**weight_map, **changes})
    with pytest.raises(CheckpointError, match=message):
        stored_tensors(sharded)


def test_a_tensor_that_the_index_leaves_out(sharded: Path) -> None:
    write_index(sharded, {"a": "x.safetensors", "c": "y.safetensors"})
    with pytest.raises(CheckpointError, match=r"not where the index says: b \(in x\.safetensors\)"):
        stored_tensors(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a weight index"),
        ("[]", "is not a weight index"),
        ('{"weight_map": 3}', "is not a weight index"),
        ('{"weight_map": {"a": 3}}', "is not a weight index"),
        ('{"weight_map": {}}', "names no file"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "something else"),
        ('{"weight_map": {"a": "x.bin"}}', "something else"),
        ("[" * 100_000, "is not a weight index"),
    ],
)
def test_indexes_that_cannot_be_used(sharded: Path, text: str, message: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        stored_tensors(sharded)


def test_messages_stay_short() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed([f"{number:02}" for number in range(30)]) == (
        "00, 01, 02, 03, 04, 05, 06, 07 and 22 more"
    )
    assert len(listed(["x" * 10_000])) < 300
