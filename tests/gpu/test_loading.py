"""Weights go straight to a GPU and are there what they are on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from purifier import load_mdlm
from purifier.mdlm import weight_reader

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("staging", [4096, 64 * 1024**2], ids=["many-buffers", "one-buffer"])
def test_weights_are_those_of_the_cpu(
    checkpoint: Path, device: str, dtype: str, staging: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_mdlm(checkpoint, dtype=dtype)
    monkeypatch.setattr(weight_reader, "_STAGING_BYTES", staging)
    found = load_mdlm(checkpoint, device=device, dtype=dtype)
    assert found.device.type == torch.device(device).type
    weights = found.published_weights()
    for name, tensor in expected.published_weights().items():
        assert weights[name].device.type == found.device.type
        assert torch.equal(weights[name].cpu(), tensor)
    for name, buffer in found.modules.named_buffers():
        assert buffer.device.type == found.device.type, name


def test_an_index_of_the_device(checkpoint: Path, device: str) -> None:
    named = "cuda:0" if device.startswith("cuda") else device
    assert load_mdlm(checkpoint, device=named).device == torch.device(named)
