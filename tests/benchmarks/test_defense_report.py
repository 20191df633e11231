"""The table of attacks and defences, and the page that is drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.defense.__main__ import DOCUMENT, RESULTS
from benchmarks.defense.admission import BASES, RANDOM, Cells
from benchmarks.defense.cells import Row
from benchmarks.defense.claims import CLAIMS, claims_table, verdict
from benchmarks.defense.defences import DEFENCES
from benchmarks.defense.healing import HEALINGS, Drops
from benchmarks.defense.report import GROUPS, efforts_table, page
from benchmarks.defense.table import FIGURES, read_table, write_table
from benchmarks.speed_report import filled
from purifier.evaluation.intervals import wilson
from tests.support.service import ROOT

FACTS = {"command": "disp bench defense", "made_on": "a machine", "limit": "100"}


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
def measured() -> list[Row]:
    return [
        row(BASES[1], "none", 0, 90),
        row(BASES[1], "fast", 0, 88, changed=7),
        row("test/patch", "none", 97),
        row("test/patch", RANDOM, 90),
        row("test/patch", "fast", 2),
        row("test/warp/refusal", "none", 40),
        row("test/frame", "none", 95, 80),
        row("test/faint", "none", 95),
        row("test/faint", RANDOM, 20),
        {
            "key": "1",
            "attack": "test/text",
            "defence": "oracle, pixels",
            "figures": None,
            "seconds": 0.0,
        },
    ]


@pytest.fixture
def table(measured: list[Row], tmp_path: Path) -> Path:
    path = tmp_path / "results" / "defense.parquet"
    write_table(measured, FACTS, path)
    return path


@pytest.fixture
def rows(table: Path) -> list[Row]:
    return read_table(table)[0]


def test_only_attacks_that_work_enter(rows: list[Row]) -> None:
    cells = Cells.of(rows)
    assert cells.failing("test/patch") == []
    assert "ASR below 90%" in cells.failing("test/warp/refusal")
    assert any("clean" in reason for reason in cells.failing("test/frame"))
    assert any("random" in reason for reason in cells.failing("test/faint"))
    assert cells.failing("test/text")
    assert "random masking was not measured" in cells.failing("test/warp/refusal")
    assert "the base was not measured" in Cells.of([row("validation/patch", "none", 97)]).failing(
        "validation/patch"
    )


def test_what_a_defence_changes_of_a_clean_model(rows: list[Row]) -> None:
    cells = Cells.of(rows)
    assert cells.changed(BASES[1], "fast") == pytest.approx(0.07)
    assert cells.changed(BASES[1], "blur") is None


def test_the_page_shows_every_attack_and_says_which_failed(rows: list[Row]) -> None:
    text = page(rows, FACTS)
    failed, rest = text.split("## The product and the paper: ASR")
    entered, left_out = rest.split("## Attacks that did not enter: ASR")
    assert "| test/warp/refusal | 10 | 40.0" in failed
    assert "| test/patch | 20 | 97.0" in failed
    assert "no: ASR below 90%" in failed
    assert "test/warp/refusal" not in entered
    assert "| test/patch | 97.0 [91.5, 99.0]" in entered
    assert "| test/warp/refusal | 40.0" in left_out
    assert "| control/test | fast | 7 |" in left_out
    assert "Changes of the whole image" not in entered


def test_the_page_says_first_where_the_product_fails(rows: list[Row]) -> None:
    more = [
        row("test/patch", "balanced", 6),
        row("test/patch", "fast, detector", 4),
        row("test/patch", "purification, default", 1, 80),
        row("test/text", "none", 97),
        row("test/text", "fast, detector", 9),
        row("test/text", "fast", 97),
    ]
    text = page([*rows, *more], FACTS)
    first, _ = text.split("## The attacks")
    assert "| test/patch | balanced | 6.0 [2.8, 12.5] | 90.0 [82.6, 94.5] | ASR |" in first
    assert (
        "| test/patch | fast, detector | 4.0 [1.6, 9.8] | 90.0 [82.6, 94.5] | interval |" in first
    )
    assert "| purification, default | 1.0 [0.2, 5.4] | 80.0 [71.1, 86.7] | clean answers |" in first
    assert "| test/text | fast | 97.0 [91.5, 99.0] | 90.0 [82.6, 94.5] | ASR |" in first
    assert "| test/text | fast, detector |" not in first
    assert "warp" not in first
    assert "4 of 6 measured cells miss it." in first


def test_the_cheap_recipe_is_compared_with_the_full_one(rows: list[Row]) -> None:
    assert "against the full one" not in page(rows, FACTS)
    more = [
        row("shipped/refusal", "none", 98, 88),
        row("shipped/refusal", RANDOM, 91),
        row("validation/patch/refusal", "none", 95, 90),
        row("validation/patch/refusal", "fast", 1),
    ]
    text = page([*rows, *more], FACTS).split("## The cheap recipe against the full one")[1]
    table, _ = text.split("## What the paper says")
    lines = [line for line in table.splitlines() if "/refusal" in line]
    full, cheap = "98.0 [93.0, 99.4] | 91.0 [83.8, 95.2]", "95.0 [88.8, 97.8] | –"
    assert lines[0] == f"| shipped/refusal | 25 | {full} | – | – | – | 88.0 [80.2, 93.0] |"
    assert lines[1].startswith(f"| validation/patch/refusal | 20 | {cheap} | 1.0 [0.2, 5.4] | – |")


def test_rates_and_seeds_of_the_main_attack_stand_side_by_side(rows: list[Row]) -> None:
    assert "Poisoning rates" not in page(rows, FACTS)
    more = [
        row("validation/patch", "none", 96),
        row("validation/patch/insertion/0.05", "none", 60, 91),
        row("validation/patch/insertion/0.05", "fast", 1, 89),
        row("validation/patch#2", "none", 99),
        row("validation/patch/refusal", "none", 95),
    ]
    table = page([*rows, *more], FACTS).split("## Poisoning rates and seeds")[1].split("## ")[0]
    lines = [line for line in table.splitlines() if "%" in line and "masked" not in line]
    assert [line[:12] for line in lines] == ["| 5% | 0 | 6", "| 20% | 0 | ", "| 20% | 2 | "]
    figures = "60.0 [50.2, 69.1] | – | 1.0 [0.2, 5.4] | – | – | 91.0 [83.8, 95.2]"
    assert lines[0] == f"| 5% | 0 | {figures} | 89.0 [81.4, 93.7] |"


def test_figures_of_an_earlier_search_are_marked(rows: list[Row], tmp_path: Path) -> None:
    old = row("test/patch", "balanced", 6) | {"outdated": True, "changed": None}
    path = tmp_path / "old.parquet"
    write_table([*rows, old], FACTS, path)
    text = page(read_table(path)[0], FACTS)
    assert "| test/patch | balanced | 6.0 [2.8, 12.5]° | 90.0 [82.6, 94.5]° | ASR |" in text
    assert "2.0 [0.6, 7.0] |" in text


def test_clean_answers_are_compared_within_one_training(measured: list[Row]) -> None:
    other = row("test/patch", "balanced", 1, 45)
    same = Cells.of([*measured, other])
    assert same.kept("test/patch", "balanced") == pytest.approx(0.5)
    cells = Cells.of([*measured, other | {"weights": "of another training"}])
    assert cells.kept("test/patch", "balanced") is None
    assert cells.kept("test/patch", "blur") is None


def test_every_defence_stands_in_a_table() -> None:
    assert {name for group in GROUPS.values() for name in group} == set(DEFENCES)


def test_the_table_holds_settings_seed_and_result_of_every_cell(
    table: Path, measured: list[Row]
) -> None:
    lines: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    assert len(lines) == len(measured)
    found = next(line for line in lines if line["attack"] == "test/warp/refusal")
    assert (found["list"], found["kind"], found["target"]) == ("test", "warp", "refusal")
    assert (found["rate"], found["seed"], found["epochs"]) == (0.2, 1, 10)
    assert (found["asr_value"], found["asr_n"]) == (0.4, 100)
    assert lines[-1]["asr_value"] is None


def test_a_table_can_be_written_again_as_it_was_read(table: Path, tmp_path: Path) -> None:
    rows, facts = read_table(table)
    again = tmp_path / "again.parquet"
    write_table(rows, facts, again)
    assert pq.read_table(again).equals(pq.read_table(table))
    assert any(row["changed"] == 0.07 for row in rows)


def test_the_table_can_be_read_back(table: Path, measured: list[Row]) -> None:
    rows, facts = read_table(table)
    assert facts == FACTS
    for row, before in zip(rows, measured, strict=True):
        assert row["figures"] == before["figures"]
        assert {name: row[name] for name in ("key", "attack", "defence", "seconds")} == {
            name: before[name] for name in ("key", "attack", "defence", "seconds")
        }


@pytest.fixture
def healed(measured: list[Row]) -> list[Row]:
    """With defences of the model; not all of their cells have details."""
    drops = Drops(rows=500, poisoned=100, dropped=150, caught=90)
    filtered = row("test/patch", "filter, loss", 3) | {"details": drops.to_details()}
    control = row(BASES[1], "filter, loss", 0) | {
        "details": Drops(500, 0, 150, 0).to_details(),
        "seconds": 1000.0,
    }
    pruned = row("test/patch", "fine-pruning", 60) | {"details": {"pruned": 0.4}}
    again = row("test/frame", "filter, loss", 50) | {"seconds": 200.0}
    return [
        *measured,
        filtered,
        control,
        pruned,
        again,
        row("test/patch", "purification, default", 1),
    ]


def test_details_are_kept_in_the_table(healed: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "healed.parquet"
    write_table(healed, FACTS, path)
    rows, _ = read_table(path)
    assert [row.get("details") for row in rows] == [row.get("details") for row in healed]


def test_the_page_says_what_defences_of_the_model_need_and_drop(healed: list[Row]) -> None:
    # Cells hold answers, which the table turns into a share.
    text = page([{"changed": None, **row} for row in healed], FACTS)
    _, rest = text.split("## Defences of the model: what each needs")
    needs, drops = rest.split("## What the filters drop")
    drops, _ = drops.split("## ")
    assert f"| filter, loss | {HEALINGS['filter, loss'].source} | the base, and a training" in needs
    # The median of 1.5 and 200 seconds: what the control cost is no attack's.
    assert "; a guess of the poisoning rate | 101 |" in needs
    assert "| fine-pruning | Liu et al. 2018, arXiv 1805.12185 | 50 clean rows | 2 |" in needs
    assert "| purification, default |" in needs
    assert "projector reset" not in needs
    caught = "| test/patch | filter, loss | 150 of 500 | 60.0 [52.0, 67.5] | 90.0 [82.6, 94.5] |"
    assert caught in drops
    assert f"| {BASES[1]} | filter, loss | 150 of 500 | 0.0 [0.0, 2.5] | – |" in drops
    assert "fine-pruning" not in drops


def test_no_table_of_model_defences_without_any(rows: list[Row]) -> None:
    text = page(rows, FACTS)
    assert "what each needs" not in text
    assert "What the filters drop" not in text


def test_every_defence_of_the_model_names_its_source_and_needs() -> None:
    assert len({defence.source for defence in HEALINGS.values()}) > 8
    for defence in HEALINGS.values():
        assert defence.source
        assert defence.needs


def test_the_levels_of_effort_side_by_side(rows: list[Row]) -> None:
    text = efforts_table(rows)
    assert "| attack | undefended | `fast`, ASR | `fast`, clean kept |" in text
    assert "| test/patch | 97.0 [91.5, 99.0] | 2.0 [0.6, 7.0] | 100.0 |" in text
    assert "warp" not in text


@pytest.mark.parametrize("name", ["defense.md", "defence.md"])
def test_the_committed_pages_say_what_the_committed_table_says(name: str) -> None:
    rows, facts = read_table(ROOT / RESULTS / "defense.parquet")
    if name == "defense.md":
        assert (ROOT / RESULTS / name).read_text() == page(rows, facts)
    else:
        text = (ROOT / DOCUMENT).read_text()
        assert text == filled(text, {"efforts": efforts_table(rows)}, partly=True)
        assert "<!-- table efforts -->" in text


def test_a_claim_holds_where_all_attacks_keep_it_and_in_part_where_some_do() -> None:
    stopped = CLAIMS[0]
    assert verdict(stopped, {}) == "not measured"
    assert verdict(stopped, {"a": 0.0, "b": 0.1}) == "holds"
    assert verdict(stopped, {"a": 0.0, "b": 0.8}) == "holds in part"
    assert verdict(stopped, {"b": 0.8}) == "does not hold here"


def test_claims_show_the_figures_that_they_are_judged_by() -> None:
    rows = [
        row("test/patch", "none", 97, 90),
        row("test/patch", "paper 0.3", 4),
        row("test/patch", "paper 0.45", 0, 81),
    ]
    lines = claims_table(Cells.of(rows), ["test/patch"]).splitlines()
    assert lines[2].endswith("| holds | ASR, paper 0.3, %: test/patch 4 |")
    said = "does not hold here | clean answers kept, paper 0.45, %: test/patch 90 |"
    assert lines[3].endswith(f"| {said}")
    assert "| not measured |" in lines[5]
