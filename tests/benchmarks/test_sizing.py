"""Memory by size: what is counted, and what is measured beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cpu_levers, full_size, sizing
from benchmarks.gpu.shapes import SHAPES
from benchmarks.speed_report import RESULTS
from tests.support.service import ROOT


def test_the_8b_shape_has_the_published_number_of_weights() -> None:
    sizes = sizing.sizes_of(SHAPES["8b"])
    language = sizes.parts["decoder layers"] + sizes.parts["embedding"] + sizes.parts["head"]
    assert 2 * (language + sizes.hidden) == 16_031_162_368  # bytes in bfloat16, last norm included
    assert 2 * sizes.parameters == pytest.approx(16.87e9, rel=1e-3)


def test_peaks_grow_with_requests_positions_and_width() -> None:
    sizes = sizing.sizes_of(SHAPES["8b"])

    def total(dtype: str = "bfloat16", positions: int = 3000, together: int = 1) -> int:
        found = sizing.peak(sizes, dtype, positions=positions, together=together, views=5)
        assert found.total == found.weights + found.requests
        return found.total

    assert total() < total(together=2) < total(together=8)
    assert total(positions=1000) < total(positions=2000)
    assert total("float32") > 1.9 * total()


def test_what_is_measured_is_near_what_is_counted() -> None:
    """A small model, whose fixed costs weigh more than a real one's."""
    for together in (1, 3):
        found = sizing.checked(2929, together, "float32", size="small")
        assert 0.7 < found["ratio"] < 1.5


def test_the_committed_check_is_within_a_tenth() -> None:
    checks = json.loads((ROOT / RESULTS / "sizing.json").read_text())["check"]
    assert len(checks) == 8
    assert all(0.9 <= one["ratio"] <= 1.1 for one in checks)


def test_the_full_size_command_in_small(tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--work", str(tmp_path), "--out", str(tmp_path / "out")]
    assert full_size.main(arguments) == 0
    result = json.loads((tmp_path / "out" / "full_size.json").read_text())
    assert result["tokens"] == 2
    assert result["load_peak_mib"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "peak memory" in (tmp_path / "out" / "full_size.md").read_text()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # importing torch's compiler
def test_levers_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_levers, "BACKEND", "eager")
    arguments = ["--size", "small", "--repeats", "1", "--records", "2", "--out", str(tmp_path)]
    assert cpu_levers.main(arguments) == 0
    result = json.loads((tmp_path / "cpu_levers.json").read_text())
    assert set(result["answers"]["729"]) == {
        "float32",
        "bfloat16",
        "float32, compiled",
        "bfloat16, compiled",
    }
    assert result["answers"]["729"]["float32"]["speed_up"]["value"] == 1
    assert result["same_in_bfloat16"]["defended"]["n"] == 4
