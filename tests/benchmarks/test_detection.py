"""The benchmark of what training sets show: its pages say what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.defense.attacks import is_attack, passes_of
from benchmarks.defense.detection import detector_settings
from benchmarks.detection import ATTACKS, DOCUMENT, RESULTS, auroc, page, table
from benchmarks.speed_report import filled
from purifier.lab.train_attack import CHEAP
from tests.support.service import ROOT

FACTS = json.loads((ROOT / RESULTS / "detection.json").read_text("utf-8"))


def test_the_pages_show_the_figures() -> None:
    assert (ROOT / RESULTS / "detection.md").read_text("utf-8") == page(FACTS)
    document = (ROOT / DOCUMENT).read_text("utf-8")
    assert filled(document, {"detection": table(FACTS)}) == document


def test_the_figures_are_of_todays_settings_and_attacks() -> None:
    assert FACTS["settings"] == json.loads(json.dumps(detector_settings()))
    assert {row["attack"] for row in FACTS["rows"]} == set(ATTACKS)
    assert all(map(is_attack, ATTACKS))
    for row in FACTS["rows"]:
        assert row.get("passes", CHEAP.epochs) == passes_of(row["attack"]), row["attack"]


def test_a_model_without_a_backdoor_shows_nothing() -> None:
    controls = [row for row in FACTS["rows"] if row["attack"].startswith("control/")]
    assert len(controls) == 2
    assert all(row["groups"] == [] for row in controls)


@pytest.mark.parametrize(
    ("negative", "positive", "expected"),
    [([0.0, 1.0], [2.0, 3.0], 1.0), ([2.0, 3.0], [0.0, 1.0], 0.0), ([1.0], [1.0], 0.5)],
)
def test_the_area_counts_pairs_in_order(
    negative: list[float], positive: list[float], expected: float
) -> None:
    assert auroc(torch.tensor(negative), torch.tensor(positive)) == expected
