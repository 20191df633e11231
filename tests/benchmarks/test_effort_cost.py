"""The cost of the levels of effort, on one scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from benchmarks import effort_cost
from purifier.defense.config import Effort
from tests.support.service import ROOT


def test_every_level_is_timed_on_clean_and_triggered_images(tmp_path: Path) -> None:
    arguments = ["--scenes", "1", "--repeats", "1", "--threads", "1", "--out", str(tmp_path)]
    assert effort_cost.main(arguments) == 0
    facts = json.loads((tmp_path / "effort_cost.json").read_text("utf-8"))
    sides = [row["defence"] for row in facts["rows"]]
    assert sides == ["undefended", *get_args(Effort), effort_cost.WITH_DETECTOR]
    for row in facts["rows"]:
        for images in ("clean", "triggered"):
            assert row[images]["seconds"]["n"] == row[images]["ratio"]["n"] == 1
    document = (tmp_path / "effort_cost.md").read_text("utf-8")
    assert facts["command"] in document
    for row in facts["rows"]:
        assert f"| {row['defence']} | {row['clean']['ratio']['value']:.3g} (" in document


def test_the_committed_pages_say_what_the_committed_figures_say() -> None:
    results = ROOT / effort_cost.RESULTS
    facts = json.loads((results / "effort_cost.json").read_text("utf-8"))
    assert (results / "effort_cost.md").read_text("utf-8") == effort_cost.page(facts)
    text = (ROOT / effort_cost.DOCUMENT).read_text("utf-8")
    assert "<!-- table effort_cost -->" in text
    made = {"effort_cost": effort_cost.table(facts["rows"])}
    place = text.split("<!-- table effort_cost -->\n")[1].split("<!-- end -->")[0]
    assert place == made["effort_cost"]
