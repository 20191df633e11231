"""The speed benchmark: what is kept, what is measured anew, what the tables say."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.speed_answers import Part, extrapolation, plain_defended, undefended
from benchmarks.speed_report import DOCUMENTS, RESULTS, filled, tables
from benchmarks.speed_settings import CHANGES, exact_generation, faster, limit_of, masking_at
from benchmarks.speed_timing import Bench, Spread, ratios
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import EXACT, FAST
from purifier.errors import InvalidSetting
from tests.support.service import ROOT

QUICK = ["--quick", "--size", "small", "--threads", "1"]


def measured(out: Path, *arguments: str) -> dict[str, Part]:
    assert speed.main([*QUICK, "--out", str(out), *arguments]) == 0
    parts: dict[str, Part] = json.loads((out / "speed.json").read_text())["parts"]
    return parts


def test_a_stopped_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = measured(tmp_path, "--only", "undefended_32")
    capsys.readouterr()
    both = measured(tmp_path, "--only", "purify_rows", "undefended_32")
    assert both["undefended_32"] == first["undefended_32"]
    assert list(both) == ["undefended_32", "purify_rows"]
    told = capsys.readouterr()
    assert "undefended_32: kept from" in told.err
    assert "purify_rows: measuring" in told.err
    assert told.out.count("| `") == 2
    text = (tmp_path / "speed.md").read_text()
    assert "quick" in text
    assert first["undefended_32"]["command"] in text

    again = measured(tmp_path, "--only", "undefended_32", "--again")
    assert again["undefended_32"]["seconds_taken"] > 0
    assert again["undefended_32"]["cells"] != first["undefended_32"]["cells"]
    other = measured(
        tmp_path, "--only", "undefended_32", "--generation-settings", '{"cache": "dual"}'
    )
    assert other["undefended_32"]["settings"]["generation"] == {"cache": "dual"}
    assert "cache dual" in (tmp_path / "speed.md").read_text()


def test_the_plain_side_is_timed_whole_or_foretold() -> None:
    bench = Bench(size="small", repeats=1, changes=dict(CHANGES))
    part = undefended(replace(bench, quick=True), 32)
    whole = undefended(replace(bench, full=True), 32)
    for visual in ("729", "2929"):
        assert part["cells"][visual]["plain_steps"] == {"timed": 1, "of": 32}
        assert whole["cells"][visual]["plain_steps"] == {"timed": 32, "of": 32}
        cell = whole["cells"][visual]
        quotient = cell["seconds"]["plain"]["value"] / cell["seconds"]["fast"]["value"]
        assert cell["speed_up"]["value"] == pytest.approx(quotient)
    assert part["value"] == part["cells"]["2929"]["speed_up"]["value"]
    told = extrapolation(bench)
    assert set(told["seconds"]) == {"whole", "foretold"}
    assert plain_defended(replace(bench, quick=True))["value"] > 0


def test_sides_are_run_in_turn() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    bench = Bench(repeats=3)
    found = bench.pairs("turns", {name: partial(side, name) for name in "ab"})
    assert order == list("ababab")
    assert found == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    assert ratios(found["a"], found["b"]) == Spread(3 / 4, 1 / 2, 5 / 6, 3)


def test_the_fast_settings_are_the_products() -> None:
    assert faster(EXACT, CHANGES) == FAST
    assert exact_generation(128).n_blocks == 4
    assert faster(exact_generation(128), CHANGES).n_steps == 128
    assert masking_at("patch") == MaskingConfig()
    assert masking_at("token").level == "token"
    assert limit_of("token") < limit_of("patch")
    with pytest.raises(InvalidSetting, match="cash"):
        faster(EXACT, {"cash": 1})


@pytest.mark.parametrize("given", ["{", "[1]", '{"cache": "none", "steps": 0}'])
def test_settings_that_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main([*QUICK, "--generation-settings", given]) == 2
    assert "error: " in capsys.readouterr().err


def test_figures_that_there_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main([*QUICK, "--only", "nothing"])
    assert "undefended_32" in capsys.readouterr().err


def test_a_document_is_filled_from_the_results() -> None:
    text = "Before\n<!-- table main -->\nold\n<!-- end -->\nafter\n"
    assert filled(text, {"main": "new\n"}) == text.replace("old", "new")
    with pytest.raises(KeyError):
        filled("<!-- table other -->\n<!-- end -->", {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_the_committed_documents_say_what_the_results_say(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    document = path.read_text()
    assert filled(document, tables(RESULTS)) == document
    assert len(document.splitlines()) <= 200
