"""The report: self-contained, and safe to open whatever the data set's makers wrote into it."""

from __future__ import annotations

import base64
import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from purifier.certified.config import CertifyConfig
from purifier.errors import DataError
from purifier.evaluation.gate import GateLimits, judge
from purifier.evaluation.intervals import kept_ratio, wilson
from purifier.evaluation.job_report import render, shown, write_report
from purifier.evaluation.report_figures import interval_figure, loss_figure

ATTACK = "</dd></style><script src='//x.example/a.js'>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "example-000004.png")
    side = {"disagreement": wilson(15, 100), "asr": wilson(98, 100), "clean_exact": wilson(85, 99)}
    healed = {**side, "disagreement": wilson(2, 100), "asr": wilson(1, 100)}
    change = {"drift": wilson(2, 80), "utility_kept": kept_ratio([True] * 9, [True] * 9)}
    metrics = {
        "before": {name: rate.to_dict() for name, rate in side.items()},
        "after": {name: rate.to_dict() for name, rate in healed.items()},
        "change": {name: rate.to_dict() for name, rate in change.items()},
        "labels": {"flagged": wilson(15, 100).to_dict()},
    }
    example = {
        "record": 4,
        "id": "train-0004",
        "question": "What is this?",
        "old_label": "<backdoor> A bag.",
        "new_label": "A bag.",
        "flagged": True,
        "dropped": False,
        "before": "<backdoor> A bag.",
        "before_masked": "A bag.",
        "after": "A bag.",
        "picture": "example-000004.png",
    }
    return {
        "job": {"id": "ftjob-1", "created_at": 1790000000.25, "seed": 7},
        "verdict": judge(metrics, GateLimits(max_asr=0.02, min_utility=0.98)).to_dict(),
        "evaluation": {
            "metrics": metrics,
            "examples": [example],
            "rows": 100,
            "test_rows": 99,
            "flags": "labels",
            "checkpoints": {"before": "bad@sha256:aaa", "after": "good@sha256:bbb"},
        },
        "data": {"name": "train.json", "sha256": "c" * 64},
        "settings": {"purify": {"policy": "relabel_all", "masking": {"ratio": 0.1}}},
        "training": {"loss": [[0, 2.0], [1, 1.0], [2, 0.5]]},
        "seconds": {"relabel": 12.5},
    }


def test_the_page_tells_the_facts(facts: dict[str, Any], tmp_path: Path) -> None:
    write_report(facts, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == facts
    page = Page((tmp_path / "report.html").read_text())
    for expected in (
        "The gate is passed.",
        "15.0% [9.3, 23.3]",
        "2.0% [0.6, 7.0]",
        "-97.0",
        "asr 1% (n = 100) is within max_asr 2%.",
        "<backdoor> A bag.",
        "bad@sha256:aaa",
        "good@sha256:bbb",
        "c" * 64,
        "masking.ratio",
        "relabel_all",
        "train-0004",
        "2026-09-21 14:13:20 UTC",
    ):
        assert expected in page.text
    assert sum(tag == "circle" for tag, _ in page.tags) == 6
    assert sum(tag == "polyline" for tag, _ in page.tags) == 1
    picture = next(values["src"] for tag, values in page.tags if tag == "img")
    assert picture is not None
    content = base64.b64decode(picture.removeprefix("data:image/png;base64,"))
    assert content == (tmp_path / "example-000004.png").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "example-000004.png",
        "report.html",
        "report.json",
    ]


def test_certified_labels_come_with_what_they_guarantee(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    assert "guarantee" not in Page(render(facts, tmp_path)).text
    certify = CertifyConfig(window=0.15)
    facts["settings"]["purify"] = {"policy": "certified", "certify": certify.to_dict()}
    text = Page(render(facts, tmp_path)).text
    assert "What the new labels guarantee" in text
    assert certify.statement in text
    assert "15% of the width by 15% of the height" in text
    assert "Not covered: triggers in the text" in text


def test_a_failed_gate_gives_its_reasons(facts: dict[str, Any], tmp_path: Path) -> None:
    metrics = facts["evaluation"]["metrics"]
    facts["verdict"] = judge(metrics, GateLimits(max_asr=0.001)).to_dict()
    page = Page(render(facts, tmp_path))
    assert "The gate is not passed." in page.text
    assert "asr 1% (n = 100) is above max_asr 0.1%." in page.text
    assert "not met" in page.text


def plant(value: Any, text: str) -> Any:
    """Puts a text into every string of the facts that outsiders have a hand in."""
    if isinstance(value, dict):
        return {
            key + text if key in ("created_at", "seed", "ratio", "relabel") else key: inner
            if key in ("picture", "metrics", "flags")
            else plant(inner, text)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [plant(inner, text) for inner in value]
    return value + text if isinstance(value, str) else value


def test_nothing_in_the_data_becomes_markup(facts: dict[str, Any], tmp_path: Path) -> None:
    plain, planted = Page(render(facts, tmp_path)), plant(copy.deepcopy(facts), ATTACK)
    page = Page(render(planted, tmp_path))
    assert page.text.count("alert(1)") >= 15
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [list(values) for _, values in page.tags] == [list(values) for _, values in plain.tags]


def test_the_page_loads_nothing(facts: dict[str, Any], tmp_path: Path) -> None:
    page = Page(render(plant(facts, ATTACK), tmp_path))
    assert not {"script", "link", "iframe", "object", "embed", "a", "base", "form"} & {
        tag for tag, _ in page.tags
    }
    for tag, values in page.tags:
        for name, value in values.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "poster"):
                assert (value or "").startswith("data:image/png;base64,"), tag
    policies = [v["content"] for t, v in page.tags if v.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_text_cannot_turn_its_surroundings_around() -> None:
    assert shown("a\u202eb\x00c\nd") == "a\ufffdb\ufffdc\nd"
    assert shown(None) == "–"
    assert shown(True) == "yes"
    long = shown("x" * 5000)
    assert len(long) < 1300
    assert long.endswith("(3800 more characters in report.json)")


def test_a_picture_is_a_file_of_the_folder(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in ("../secret.png", str(tmp_path / "secret.png"), "absent.png"):
        facts["evaluation"]["examples"][0]["picture"] = name
        with pytest.raises(DataError):
            write_report(facts, inner)
    assert list(inner.iterdir()) == []


def test_what_is_absent_is_left_out(facts: dict[str, Any], tmp_path: Path) -> None:
    evaluation = facts["evaluation"]
    small = {"evaluation": {**evaluation, "metrics": {}, "examples": [], "checkpoints": {}}}
    page = Page(render(small, tmp_path))
    assert "Purification report" in page.text
    assert not any(tag in ("svg", "img") for tag, _ in page.tags)
    wrongs: list[dict[str, Any]] = [{}, {"evaluation": {}}, {"evaluation": None}]
    for wrong in wrongs:
        with pytest.raises(DataError):
            render(wrong, tmp_path)


def test_figures_stay_on_their_canvas() -> None:
    rate = {"value": 1.2, "low": 0.0, "high": 1.4, "n": 3}
    figure = interval_figure([{"heading": "x", "before": rate, "after": rate}])
    assert figure is not None
    for row in figure["rows"]:
        for mark in row["marks"]:
            assert figure["left"] <= mark["low"] <= mark["x"] <= mark["high"] <= figure["right"]
    assert loss_figure([(0, 1.0)]) is None
    flat = loss_figure([(3, 0.0), (3, 0.0)])
    assert flat is not None
    assert flat["path"].startswith("56.0,160.0")
