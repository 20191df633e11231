"""The saliency benchmark: it resumes, and reports what is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import saliency_cost
from benchmarks.saliency_recall import METHODS, recall
from benchmarks.saliency_settings import SETTINGS
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.registry import load_mdlm

SPREAD = {"value": 1.25, "low": 1.0, "high": 1.5, "n": 3}
RATE = {"value": 0.125, "low": 0.0625, "high": 0.25, "n": 40}
CELLS: dict[str, dict[str, Any]] = {
    "cost: middle, patch two-stage, gate 1, suspected": {"ratio": SPREAD},
    "cost: middle, patch two-stage, gate 1, nothing suspected": {"ratio": SPREAD},
    "quality: test, refusal, undefended": dict.fromkeys(
        ("asr", "clean_exact", "recovered", "recovered_true"), RATE
    ),
    "quality: test, refusal, patch two-stage, ratio 0.1": dict.fromkeys(
        ("asr", "clean_exact", "recovered", "recovered_true"), RATE
    ),
    "recall: refusal, token": {"attention": {"recall": 0.375, "whole": RATE, "n": 40}},
    "backward: demo, token": dict.fromkeys(
        ("forward", "loop", "is_grads_batched", "repeated batch"), SPREAD
    ),
    "backward: memory, 729 visual tokens, 2 requests, token, 6 at once": {
        "positions": 1600, "forward_mib": 1234.0, "backward_mib": 2345.0,
    },
}  # fmt: skip


def plan_of(cells: dict[str, Any], ran: list[str]) -> Any:
    def plan(part: str, options: object) -> Iterator[saliency_cost.Work]:
        def work(key: str) -> Any:
            ran.append(key)
            return cells[key]

        for key in cells:
            if key.startswith(f"{part}: "):
                yield key.removeprefix(f"{part}: "), partial(work, key)

    return plan


def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(saliency_cost, "plan", plan_of(CELLS, ran))
    first = ["--out", str(tmp_path), "--no-figure", "--parts", "cost"]
    assert saliency_cost.main(first) == 0
    assert ran == [key for key in CELLS if key.startswith("cost")]
    with (tmp_path / "saliency_cost.jsonl").open("a") as file:
        file.write('{"cell": "quality: cut')
    assert saliency_cost.main(["--out", str(tmp_path)]) == 0
    assert sorted(ran) == sorted(CELLS)
    result = json.loads((tmp_path / "saliency_cost.json").read_text())
    assert result["cells"] == CELLS
    assert (tmp_path / "saliency_cost.png").stat().st_size > 10_000
    report = (tmp_path / "saliency_cost.md").read_text()
    for figure in ("1.25 [1.00, 1.50]", "12.5 [6.2, 25.0]", "38 (12.5", "1,234", "2,345"):
        assert figure in report
    for name in SETTINGS:
        assert f"| {name} |" in report


def test_recall_of_the_trigger_on_the_demo() -> None:
    mdlm = load_mdlm(checkpoint_path("insertion"))
    test = read_test_set(DATA_FOLDER, limit=4)
    named = {"random": METHODS["patch"][0], "two-stage": METHODS["patch"][-3]}
    found = recall(mdlm, test, "insertion", "patch", tuple(named.values()), 2)
    assert found["two-stage"]["recall"] == 1.0
    assert found["two-stage"]["whole"]["value"] == 1.0
    assert found["random"]["recall"] < 1.0
    assert {figures["n"] for figures in found.values()} == {2}
