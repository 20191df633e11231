"""The fresh-scenes benchmark from the command line to its files, on a small random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from purifier.defense.config import EFFORTS
from purifier.lab.scenes import DEBIAN_FOLDER
from purifier.lab.targets import TargetName

if not DEBIAN_FOLDER.is_dir():
    pytest.skip("needs the Debian package dataset-fashion-mnist", allow_module_level=True)
pytest.importorskip("matplotlib", reason="shares a module with a benchmark that draws")

from benchmarks.fresh_scenes import main
from server.config import DEFAULT_EFFORT

DEFAULT = EFFORTS[DEFAULT_EFFORT]


def test_every_target_is_measured_on_scenes_of_its_own(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for target in get_args(TargetName):
        shutil.copytree(tiny_checkpoint, tmp_path / "models" / target)
    paths = ["--models", str(tmp_path / "models"), "--out", str(tmp_path)]
    assert main([*paths, "--scenes", "2", "--seed", "5"]) == 0
    report = json.loads((tmp_path / "fresh_scenes.json").read_text())
    per_target = {t: [r for r in report["rows"] if r["target"] == t] for t in get_args(TargetName)}
    for rows in per_target.values():
        assert {row["ranker"] for row in rows} >= {"undefended", DEFAULT["ranker"], "random"}
        assert all(row["figures"]["clean_exact"]["n"] == 2 for row in rows)
    assert "--scenes 2 --seed 5" in report["command"]
    assert "## refusal" in (tmp_path / "fresh_scenes.md").read_text()
