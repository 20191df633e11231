"""What company costs a pass, in small."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import batch_bound


def test_the_command_writes_its_files(tmp_path: Path) -> None:
    arguments = ["--size", "small", "--repeats", "2", "--out", str(tmp_path)]
    assert batch_bound.main(arguments) == 0
    result = json.loads((tmp_path / "batch_bound.json").read_text())
    assert result["command"].endswith(" ".join(arguments))
    assert set(result["models"]) == {"demo", "small, 729 visual tokens"}
    for kinds in result["models"].values():
        assert len(kinds) == 3
        for found in kinds.values():
            one, eight = found["1"], found["8"]
            assert one["gain"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 2}
            assert eight["gain"]["low"] <= eight["gain"]["value"] <= eight["gain"]["high"]
            assert one["seconds"]["n"] == eight["seconds"]["n"] == 2
    report = (tmp_path / "batch_bound.md").read_text()
    assert report.count("step, stored prompt") == 2
