"""The table of attacks and defences, and the page that is drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.defense.cells import Row
from benchmarks.defense.defences import DEFENCES
from benchmarks.defense.report import BASE, GROUPS, RANDOM, Cells, page, write_table
from purifier.evaluation.intervals import wilson

FIGURES = (
    "asr",
    "asr_exact",
    "asr_untriggered",
    "clean_exact",
    "clean_slots",
    "recovered",
    "recovered_true",
)


def row(attack: str, defence: str, asr: int, clean: int = 90, *, changed: int = 0) -> Row:
    """A cell of 100 scenes."""
    counts = dict.fromkeys(FIGURES, 0) | {"asr": asr, "clean_exact": clean}
    figures = {name: wilson(count, 100).to_dict() for name, count in counts.items()}
    answers = ["other"] * changed + ["A bag."] * (100 - changed)
    return {
        "key": f"{attack}-{defence}",
        "attack": attack,
        "defence": defence,
        "figures": figures,
        "clean": answers,
        "triggered": answers,
        "seconds": 1.5,
    }


@pytest.fixture
def rows() -> list[Row]:
    return [
        row(BASE, "none", 0, 90),
        row(BASE, "default", 0, 88, changed=7),
        row("test/patch", "none", 97),
        row("test/patch", RANDOM, 90),
        row("test/patch", "default", 2),
        row("test/warp/refusal", "none", 40),
        row("test/frame", "none", 95, 80),
        row("test/faint", "none", 95),
        row("test/faint", RANDOM, 20),
        {**row("test/text", "oracle, pixels", 0), "figures": None},
    ]


def test_only_attacks_that_work_enter(rows: list[Row]) -> None:
    cells = Cells.of(rows)
    assert cells.failing("test/patch") == []
    assert "ASR below 90%" in cells.failing("test/warp/refusal")
    assert any("clean" in reason for reason in cells.failing("test/frame"))
    assert any("random" in reason for reason in cells.failing("test/faint"))
    assert cells.failing("test/text")


def test_what_a_defence_changes_of_a_clean_model(rows: list[Row]) -> None:
    cells = Cells.of(rows)
    assert cells.changed(BASE, "default") == pytest.approx(0.07)
    assert cells.changed(BASE, "blur") is None


def test_the_page_shows_every_attack_and_says_which_failed(rows: list[Row]) -> None:
    text = page(rows, "disp bench defense", "a machine", 100)
    failed, entered = text.split("## The product and the paper: ASR")
    assert "| test/warp/refusal | 40.0" in failed
    assert "no: ASR below 90%" in failed
    assert "test/warp/refusal" not in entered
    assert "| test/patch | 97.0 [91.5, 99.0]" in entered
    assert "| default | 7 |" in entered
    assert "Changes of the whole image" not in entered


def test_every_defence_stands_in_a_table() -> None:
    assert {name for group in GROUPS.values() for name in group} == set(DEFENCES)


def test_the_table_holds_settings_seed_and_result_of_every_cell(
    rows: list[Row], tmp_path: Path
) -> None:
    write_table(rows, tmp_path / "results" / "defense.parquet")
    table: list[dict[str, Any]] = pq.read_table(
        tmp_path / "results" / "defense.parquet"
    ).to_pylist()
    assert len(table) == len(rows)
    found = next(line for line in table if line["attack"] == "test/warp/refusal")
    assert (found["list"], found["kind"], found["target"]) == ("test", "warp", "refusal")
    assert (found["rate"], found["seed"], found["asr"], found["asr_n"]) == (0.2, 1, 0.4, 100)
    assert table[-1]["asr"] is None
