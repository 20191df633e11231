"""The benchmark of the engine's fairness rule, on one scene."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import passes_per_step


def test_more_passes_between_steps_make_larger_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes_per_step, "CHOICES", (1, 64))
    monkeypatch.setattr(passes_per_step, "MASKINGS", {"undefended": None})
    assert passes_per_step.main(["--cases", "3", "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "passes_per_step.json").read_text("utf-8"))
    few, many = facts["rows"]
    assert few["mean_batch"] < many["mean_batch"] <= 6
    assert few["same_as_alone"] == many["same_as_alone"] == facts["questions"] == 6
    document = (tmp_path / "passes_per_step.md").read_text("utf-8")
    assert facts["command"] in document
    assert "| undefended | 64 |" in document
