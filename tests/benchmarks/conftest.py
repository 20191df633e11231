"""What the tests of the benchmark of defences share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.defense.cells import Bench
from benchmarks.defense.training import Lab
from purifier.lab.train_attack import CHEAP


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attacks that were trained for one test serve the others."""
    return tmp_path_factory.mktemp("defense")


@pytest.fixture
def bench(work: Path, tmp_path: Path) -> Bench:
    """Attacks of two training steps, measured on three scenes."""
    lab = replace(Lab(), work=work, samples=10, recipe=replace(CHEAP, epochs=1, batch=5))
    return Bench(lab, tmp_path / "cells.jsonl", limit=3)
