"""The device that these tests compare with the CPU, and models on both.

`DISP_GPU_DEVICE` names it, `cuda` by default; without such a device every test here is skipped.
With `cpu` they run anywhere and prove that they run at all: `python -m benchmarks.gpu --shape tiny
--device cpu` does that.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from purifier import load_mdlm
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV

DEVICE = os.environ.get("DISP_GPU_DEVICE", "cuda")

OnDevice = Callable[..., LladaV]


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """The device under test."""
    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return DEVICE


@pytest.fixture
def cuda(device: str) -> str:
    """The device under test where it is a GPU, for what only a GPU's allocator can show."""
    if not device.startswith("cuda"):
        pytest.skip("needs a CUDA device")
    return device


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """float32 products and convolutions in full, as on the CPU."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture
def on_device(device: str) -> OnDevice:
    """A copy of a model on the device; the model itself stays as it is."""

    def move(mdlm: LladaV, dtype: torch.dtype = torch.float32) -> LladaV:
        modules = copy.deepcopy(mdlm.modules)
        for parameter in modules.parameters():  # buffers keep float32, as when they are loaded
            parameter.data = parameter.data.to(dtype)
        return mdlm.with_modules(modules.to(device))

    return move


@pytest.fixture(scope="session")
def demo() -> LladaV:
    """The shipped demo with the insertion backdoor, on the CPU."""
    mdlm = load_mdlm(checkpoint_path("insertion"))
    assert isinstance(mdlm, LladaV)
    return mdlm


@pytest.fixture(scope="session")
def demo_test_set() -> TestSet:
    return read_test_set(DATA_FOLDER, limit=20)


@pytest.fixture(scope="session")
def questions(demo: LladaV, demo_test_set: TestSet) -> list[Inputs]:
    """Clean and triggered pictures of the demo's test set."""
    return [
        demo.prepare(case.messages(trigger))
        for case in demo_test_set.cases
        for trigger in (None, demo_test_set.trigger)
    ]


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return checkpoint_path("insertion")
