"""The command that fuzzes readers: it counts examples, and reports what breaks a property."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st

from benchmarks import fuzz_readers


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_every_property_is_tried(reader: str, tmp_path: Path) -> None:
    assert fuzz_readers.main([reader, "--examples", "3", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / f"fuzz_{reader}.json").read_text())["rows"]
    assert [row["property"] for row in rows] == list(fuzz_readers.READERS[reader].properties)
    assert all(row["examples"] >= 1 and row["broken"] == "" for row in rows)
    assert "| none |" in (tmp_path / f"fuzz_{reader}.md").read_text()


def test_a_broken_property_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(number: int) -> None:
        assert number < 10

    broken = {"small numbers": (check, st.tuples(st.integers(0, 100)))}
    reader = replace(fuzz_readers.READERS["data"], properties=broken)
    monkeypatch.setattr(fuzz_readers, "READERS", {"data": reader})
    assert fuzz_readers.main(["data", "--examples", "200", "--out", str(tmp_path)]) == 1
    [row] = json.loads((tmp_path / "fuzz_data.json").read_text())["rows"]
    assert row["broken"] == "AssertionError"
    assert "(10,)" in capsys.readouterr().err
