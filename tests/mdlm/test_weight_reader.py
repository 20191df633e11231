"""Tensors come from the disk as they are there, on the device and in the dtype asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from purifier.errors import CheckpointError
from purifier.mdlm import weight_reader
from purifier.mdlm.shards import SINGLE, stored_tensors
from purifier.mdlm.weight_reader import read_tensors

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(37, 11, generator=generator),
        "half": torch.randn(5, 3, generator=generator).half(),
        "brain": torch.randn(7, generator=generator).bfloat16(),
        "double": torch.randn(9, dtype=torch.float64, generator=generator),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / SINGLE)
    return tmp_path


def read(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(read_tensors(stored_tensors(folder).values(), device=CPU, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("staging", [64, 64 * 1024**2])
def test_equals_the_library(
    folder: Path, dtype: torch.dtype, staging: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_reader, "_STAGING_BYTES", staging)
    found = read(folder, dtype)
    expected = load_file(folder / SINGLE)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor.to(dtype))


def test_what_was_read_does_not_change_with_the_file(folder: Path) -> None:
    found = read(folder, torch.float32)
    before = found["matrix"].clone()
    with (folder / SINGLE).open("r+b") as stream:
        stream.seek(-200, 2)
        stream.write(b"\0" * 200)
    assert torch.equal(found["matrix"], before)


def test_a_file_that_shrinks_between_header_and_weights(folder: Path) -> None:
    stored = list(stored_tensors(folder).values())
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="could not be read to its end"):
        list(read_tensors(stored, device=CPU, dtype=torch.float32))


def test_a_file_that_is_gone(folder: Path) -> None:
    stored = list(stored_tensors(folder).values())
    (folder / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors could not be read"):
        list(read_tensors(stored, device=CPU, dtype=torch.float32))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(
    tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_reader, "_CHECKED_TOGETHER", 4)
    weights = torch.zeros(3, 5)
    weights[2, 4] = value
    save_file({"fine": torch.zeros(3), "broken": weights}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"not numbers: broken \(in model\.safetensors\)"):
        read(tmp_path, torch.float32)


def test_nothing_to_read() -> None:
    assert list(read_tensors([], device=CPU, dtype=torch.float32)) == []
