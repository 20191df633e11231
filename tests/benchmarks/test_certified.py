"""The benchmark of certified labels: its pages show what was measured, and a small run works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import certified
from benchmarks.certified import DOCUMENT, MAIN_WINDOW, RESULTS, page, settings, summary
from benchmarks.speed_report import filled
from purifier.certified.config import CertifyConfig
from tests.support.service import ROOT


def test_the_pages_show_what_was_measured() -> None:
    facts = json.loads((ROOT / RESULTS / "certified.json").read_text("utf-8"))
    assert (ROOT / RESULTS / "certified.md").read_text("utf-8") == page(facts)
    document = (ROOT / DOCUMENT).read_text("utf-8")
    assert filled(document, {"certified": summary(facts)}) == document


def test_triggers_that_fit_decide_no_label_and_the_goal_is_met() -> None:
    """Of insertion and refusal no target is left; three rows in five are accepted."""
    facts = json.loads((ROOT / RESULTS / "certified.json").read_text("utf-8"))
    rows = {row["attack"]: row for row in facts["rows"] if row["window"] == MAIN_WINDOW}
    for name in ("validation/patch", "validation/patch/refusal"):
        assert rows[name]["target"]["value"] == 0
        assert rows[name]["accepted"]["value"] >= 0.6
        assert rows[name]["accepted_attacked"]["n"] > 0


def test_every_attack_is_measured_with_one_window_and_one_with_all() -> None:
    names = ["validation/patch", "validation/large"]
    assert settings(names) == [
        ("validation/patch", 0.2),
        ("validation/large", 0.2),
        ("validation/patch", 0.1),
        ("validation/patch", 0.3),
    ]


def test_a_finished_setting_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads((ROOT / RESULTS / "certified.json").read_text("utf-8"))
    known = facts["rows"][0]
    out = tmp_path / "certified.json"
    out.write_text(json.dumps(facts | {"samples": 7, "rows": [known]}), "utf-8")
    asked: list[tuple[str, float]] = []

    def measured(lab: object, name: str, config: CertifyConfig, limit: int) -> object:
        asked.append((name, config.window))
        assert limit == 7
        return {key: known[key] for key in known if key not in CertifyConfig().to_dict()}

    monkeypatch.setattr(certified, "measured", measured)
    arguments = ["--rows", "7", "--out", str(tmp_path), "--attacks", "validation/patch"]
    assert certified.main(arguments) == 0
    assert asked == [("validation/patch", 0.1), ("validation/patch", 0.3)]
    finished = json.loads(out.read_text("utf-8"))
    assert [row["window"] for row in finished["rows"]] == [0.2, 0.1, 0.3]
    assert (tmp_path / "certified.md").read_text("utf-8") == page(finished)
