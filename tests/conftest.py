"""What every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.generators import GlobalGenerators
from tests.support.skips import NoSilentSkips, in_ci


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(GlobalGenerators())
    if in_ci():
        config.pluginmanager.register(NoSilentSkips())


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the published layout: tiny random LLaDA-V with a real tokenizer."""
    from purifier.lab.demo_model import write_random_checkpoint

    path = tmp_path_factory.mktemp("models") / "tiny"
    write_random_checkpoint(path, seed=0)
    return path
