"""The guards around every test fail what they are there to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.skips import in_ci

ROOT = Path(__file__).parents[1]

GUARDED = """
from tests.conftest import pytest_configure
"""
DRAWS = """
import random

import numpy as np
import pytest
import torch

from purifier.seeding import seeded


@pytest.fixture(scope="session")
def drawn():
    return torch.rand(2)


@pytest.fixture
def own():
    return torch.rand(2, generator=torch.Generator().manual_seed(1))


def test_the_fixture_draws(drawn):
    pass


def test_torch_draws():
    torch.nn.Linear(2, 2)


def test_numpy_draws():
    np.random.rand()


def test_python_draws():
    random.random()


def test_nothing_is_drawn(own):
    with seeded(3):
        torch.nn.Linear(2, 2)
    np.random.default_rng(0).random()
    random.Random(0).random()
"""
SKIPS = """
import pytest

from tests.support.golden import golden_folder


@pytest.fixture
def database():
    pytest.skip("PostgreSQL is not installed.")


def test_a_fixture_skips(database):
    pass


def test_there_are_no_reference_vectors():
    golden_folder("llada_v")


@pytest.mark.skipif(True, reason="curl is not installed")
def test_a_mark_skips():
    pass


@pytest.mark.parametrize("case", [])
def test_there_are_no_cases(case):
    pass


@pytest.mark.skipif(True, reason="needs a CUDA device")
def test_there_is_no_such_hardware():
    pass


@pytest.mark.xfail(reason="known", strict=True)
def test_is_known_to_fail():
    assert False
"""
MISSING_IMPORT = """
import pytest

pytest.importorskip("a_package_that_does_not_exist")
"""


def outcomes(folder: Path, **environment: str) -> dict[str, str]:
    """Runs a folder of tests under this suite's guards: outcome by test, module or folder."""
    (folder / "conftest.py").write_text(GUARDED)
    (folder / "pytest.ini").write_text("[pytest]\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "--tb=no", "--continue-on-collection-errors"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {}
    for line in ran.stdout.splitlines():
        outcome, _, name = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL"):
            found[name.split(" - ")[0].split("::")[-1]] = outcome
    assert found, ran.stdout + ran.stderr
    return found


def test_a_draw_from_a_global_generator_fails(tmp_path: Path) -> None:
    (tmp_path / "test_draws.py").write_text(DRAWS)
    assert outcomes(tmp_path) == {
        "test_the_fixture_draws": "ERROR",
        "test_torch_draws": "FAILED",
        "test_numpy_draws": "FAILED",
        "test_python_draws": "FAILED",
        "test_nothing_is_drawn": "PASSED",
    }


def test_a_skip_fails_in_continuous_integration(tmp_path: Path) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_import.py").write_text(MISSING_IMPORT)
    found = outcomes(tmp_path, CI="true", DISP_GOLDEN=str(tmp_path / "nowhere"))
    skipped = [name for name, outcome in found.items() if outcome == "SKIPPED"]
    assert len(skipped) == 1
    assert "needs a CUDA device" in skipped[0]
    assert {name: outcome for name, outcome in found.items() if outcome != "SKIPPED"} == {
        "test_a_fixture_skips": "ERROR",
        "test_there_are_no_reference_vectors": "FAILED",
        "test_a_mark_skips": "ERROR",
        "test_there_are_no_cases[NOTSET]": "ERROR",
        "test_is_known_to_fail": "XFAIL",
        "test_import.py": "ERROR",
    }


def test_elsewhere_what_is_missing_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_import.py").write_text(MISSING_IMPORT)
    found = outcomes(tmp_path, CI="", DISP_GOLDEN=str(tmp_path / "nowhere"))
    assert set(found.values()) == {"SKIPPED", "XFAIL"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("1", True), ("", False), ("0", False), ("False", False), (None, False)],
)
def test_continuous_integration_is_known_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if value is not None:
        monkeypatch.setenv("CI", value)
    assert in_ci() is expected
