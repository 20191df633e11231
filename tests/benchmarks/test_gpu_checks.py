"""The tests as a part of the GPU command: each counts as soon as it has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import checks, goals, outcomes
from benchmarks.gpu.record import Record
from benchmarks.gpu.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("tests", "tiny", "cpu", "float32", tmp_path, Record(tmp_path / "gpu.json"), 1e9)


@pytest.mark.slow
def test_checks_on_this_device(run: Run) -> None:
    """A quick part of them: that they run where they are told to, and that figures come through."""
    checks.measure(run, [f"tests/gpu/test_{name}.py" for name in ("answers", "loading", "memory")])
    found = run.record.read()["parts"]["tests"]["figures"]["tests"]
    assert (found["status"], found["failed"]) == (0, {})
    assert found["passed"] > 5
    assert found["skipped"] >= 4  # memory caps need a GPU's allocator
    assert any("same answers in bfloat16" in name for name in found["figures"])


def checked(run: Run, test: Path, lines: str) -> tuple[dict[str, Any], float | None]:
    """The figure of some tests, and the value of its goal."""
    test.write_text("import pytest, threading\npytestmark = pytest.mark.gpu\n" + lines)
    checks.measure(run, [str(test)])
    figures = {"tests": run.record.read()["parts"]["tests"]["figures"]}
    return figures["tests"]["tests"], goals.GOALS[0].value(figures)


def test_failures_and_errors_count(run: Run, tmp_path: Path) -> None:
    found, value = checked(
        run,
        tmp_path / "test_it.py",
        "def test_bad(record_property):\n"
        "    record_property('share', '0.5')\n"
        "    assert 'left' == 'right'\n"
        "def test_good(record_property): record_property('peak', 7)\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no such thing')\n"
        "def test_without(broken): pass\n"
        "@pytest.fixture\n"
        "def untidy():\n"
        "    yield\n"
        "    raise OSError('left behind')\n"
        "def test_untidy(untidy): pass\n"
        "def test_skipped(): pytest.skip('not here')\n",
    )
    counts = [found[name] for name in ("tests", "passed", "failures", "errors", "skipped")]
    assert counts == [5, 1, 1, 2, 1]
    assert found["status"] == 1
    assert value == 3
    assert "right" in next(text for name, text in found["failed"].items() if "test_bad" in name)
    assert found["figures"] == {"test_good: peak": "7"}


def test_nothing_that_could_be_imported_is_not_measured(run: Run, tmp_path: Path) -> None:
    found, value = checked(run, tmp_path / "test_it.py", "import disp_absent\n")
    assert (found["errors"], found["passed"], value) == (1, 0, None)
    assert "disp_absent" in next(iter(found["failed"].values()))
    assert goals.GOALS[0].value({}) is None


def test_tests_that_are_cut_off_keep_what_has_passed(tmp_path: Path) -> None:
    lines = (
        "@pytest.mark.slow\ndef test_endless(): threading.Event().wait()\ndef test_good(): pass\n"
    )
    for limit in (8.0, 20.0, 60.0, 180.0):  # a busy machine may need longer to begin
        run = Run("tests", "tiny", "cpu", "float32", tmp_path, Record(tmp_path / "gpu.json"), limit)
        found, value = checked(run, tmp_path / "test_it.py", lines)
        assert found["status"] == "cut off at its time limit"
        assert value is None
        if found["passed"]:
            break
    assert (found["tests"], found["passed"]) == (1, 1)


def test_a_line_that_is_not_whole_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "outcomes"
    file.write_text('{"test": "a", "outcome": "passed"}\n{"test": "b", "outc')
    assert outcomes.read_outcomes(file)["tests"] == 1
    assert outcomes.read_outcomes(tmp_path / "absent")["tests"] == 0
