"""Readers beside a job that writes, in small."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import pollers


def test_the_command_writes_its_files(tmp_path: Path) -> None:
    arguments = ["--pollers", "3", "--seconds", "0.5", "--held", "0.2", "--out", str(tmp_path)]
    assert pollers.main(arguments) == 0
    result = json.loads((tmp_path / "pollers.json").read_text())
    assert result["command"].endswith(" ".join(arguments))
    for name in ("reads", "writes", "reads_while_locked"):
        found = result[name]
        assert found["n"] > 0
        assert found["median"] <= found["p95"] <= found["most"]
    assert (tmp_path / "pollers.md").read_text().count("| a read, while") == 2


def test_every_reader_reads_once_where_no_time_is_left(tmp_path: Path) -> None:
    arguments = ["--pollers", "3", "--seconds", "0", "--held", "0", "--out", str(tmp_path)]
    assert pollers.main(arguments) == 0
    result = json.loads((tmp_path / "pollers.json").read_text())
    assert result["reads"]["n"] == result["reads_while_locked"]["n"] == 3
    assert result["writes"]["n"] > 0
