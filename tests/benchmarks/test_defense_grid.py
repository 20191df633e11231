"""The grid benchmark from the command line to its three files, on a small random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the benchmark draws with matplotlib (dev extra)")

from benchmarks.defense_grid import main
from purifier.defense.config import MaskingConfig
from tests.evaluation.conftest import write_data_folder


def test_the_benchmark_writes_its_files(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data_folder(tmp_path / "data")
    for target in ("insertion", "refusal"):
        shutil.copytree(tiny_checkpoint, tmp_path / "models" / target)
    paths = ["--models", str(tmp_path / "models"), "--data", str(data), "--out", str(tmp_path)]
    grid = "--targets insertion refusal --ratios 0.5 --rankers random fisher --limit 2 --probes 1"
    assert main([*paths, *grid.split()]) == 0

    report = json.loads((tmp_path / "defense_grid.json").read_text())
    assert len(report["rows"]) == 2 * (3 + 1 + 2 * 2 + 1)
    assert report["command"] == f"python -m benchmarks.defense_grid {grid}"
    assert sum(report["records_by_kind"].values()) == report["records"] == 2
    text = (tmp_path / "defense_grid.md").read_text()
    assert "## insertion" in text
    assert "| patch | fisher | 0.5 | 0 |" in text
    default = MaskingConfig()
    assert f"| {default.level} | {default.ranker} (default) | {default.ratio:g} |" in text
    with Image.open(tmp_path / "defense_grid.png") as figure:
        assert figure.size[0] > 1000
    assert capsys.readouterr().out.count("ASR") == 18

    (tmp_path / "defense_grid.png").unlink()
    assert main([*paths, *grid.split(), "--no-figure"]) == 0
    assert capsys.readouterr().out.count("ASR") == 0
    assert json.loads((tmp_path / "defense_grid.json").read_text()) == report
    assert not (tmp_path / "defense_grid.png").exists()
