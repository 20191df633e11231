from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from purifier.defense.config import MaskingConfig
from purifier.errors import DataError
from purifier.evaluation.grid import Grid, Job, cells, data_hash, plan, read_rows, run_grid
from purifier.evaluation.metrics import measure
from purifier.evaluation.report import (
    BAR_HEADING,
    grid_table,
    meets_bar,
    settings_that_meet_bar,
)
from purifier.evaluation.runner import Cut, Runner
from purifier.evaluation.testset import read_test_set
from purifier.lab.targets import target_by_name
from purifier.lab.triggers import Sinusoid, trigger_to_dict
from purifier.mdlm.registry import load_mdlm


@pytest.fixture
def grid(tiny_checkpoint: Path, data_folder: Path) -> Grid:
    return Grid(
        models={"insertion": str(tiny_checkpoint), "misclassification": str(tiny_checkpoint)},
        data=str(data_folder),
        ratios=(0.2, 0.5),
        rankers=("fisher", "random"),
        masking=MaskingConfig(level="patch", ranker="fisher", probes=2),
        default=None,
        limit=2,
        batch_size=4,
    )


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_every_cell_is_measured_once_and_a_cut_run_goes_on(grid: Grid, tmp_path: Path) -> None:
    results = tmp_path / "cells.jsonl"
    rows = run_grid(grid, results)
    keys = [(row["target"], row["ranker"], row["level"], row["ratio"]) for row in rows]
    assert len(keys) == len(set(keys)) == 2 * (3 + 2 * 2 * 2)
    assert {row["threshold"] for row in rows} == {0.0}

    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:9]) + lines[9][:25])
    new: list[dict[str, Any]] = []
    again = run_grid(grid, results, report=new.append)
    assert without_times(again) == without_times(rows)
    assert len(new) == len(rows) - 9
    assert plan(grid, again) == []


def test_a_cell_holds_what_its_setting_gives(
    grid: Grid, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    rows = run_grid(grid, tmp_path / "cells.jsonl")
    test_set = read_test_set(grid.data, limit=2)
    answers = Runner(load_mdlm(tiny_checkpoint), test_set).masked(grid.masking, [Cut(0.5)])[
        Cut(0.5)
    ]
    expected = measure(test_set.cases, answers, target_by_name("misclassification")).to_dict()
    cell = next(
        row
        for row in rows
        if (row["target"], row["ranker"], row["level"], row["ratio"])
        == ("misclassification", "fisher", "patch", 0.5)
    )
    assert cell["figures"] == expected


@pytest.mark.slow
def test_workers_find_the_same(grid: Grid, tmp_path: Path) -> None:
    alone = run_grid(grid, tmp_path / "alone.jsonl")
    together = run_grid(grid, tmp_path / "together.jsonl", workers=2)
    assert without_times(together) == without_times(alone)


def test_rows_of_other_runs_are_left_alone(grid: Grid, tmp_path: Path) -> None:
    results = tmp_path / "cells.jsonl"
    small = replace(grid, ratios=(0.2,), levels=("token",), rankers=("random",))
    run_grid(small, results)
    other = replace(small, limit=3)
    assert other.fingerprint("insertion") != small.fingerprint("insertion")
    assert read_rows(results, {name: other.fingerprint(name) for name in other.models}) == []
    wider = replace(small, ratios=(0.2, 0.4), batch_size=1)
    new: list[dict[str, Any]] = []
    run_grid(wider, results, report=new.append)
    assert [row["ratio"] for row in new] == [0.4, 0.4]


def test_another_model_for_one_target_leaves_the_others_rows(
    grid: Grid, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    results = tmp_path / "cells.jsonl"
    small = replace(grid, ratios=(0.2,), levels=("token",), rankers=("random",), default=None)
    run_grid(small, results)
    other = tmp_path / "retrained"
    shutil.copytree(tiny_checkpoint, other)
    changed = replace(small, models={**small.models, "insertion": str(other)})
    new: list[dict[str, Any]] = []
    rows = run_grid(changed, results, report=new.append)
    assert {row["target"] for row in new} == {"insertion"}
    assert {row["target"] for row in rows} == set(small.models)


def test_the_fingerprint_follows_data_and_seed(grid: Grid, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(grid.data, copy)
    assert replace(grid, data=str(copy)).fingerprint("insertion") == grid.fingerprint("insertion")
    records = json.loads((copy / "test" / "test.json").read_text())
    (copy / "test" / "test.json").write_text(json.dumps(records[:-1]))
    assert data_hash(copy) != data_hash(grid.data)
    assert replace(grid, data=str(copy)).fingerprint("insertion") != grid.fingerprint("insertion")
    seeded = replace(grid, masking=replace(grid.masking, seed=7))
    assert seeded.fingerprint("insertion") != grid.fingerprint("insertion")


def test_a_spread_trigger_has_no_oracles(grid: Grid, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(grid.data, copy)
    (copy / "manifest.json").write_text(json.dumps({"trigger": trigger_to_dict(Sinusoid())}))
    small = replace(grid, data=str(copy), levels=(), rankers=())
    rows = run_grid(small, tmp_path / "cells.jsonl")
    assert {row["ranker"] for row in rows} == {"undefended"}
    assert len(cells(small)) == 6


def test_a_damaged_line_is_named(grid: Grid, tmp_path: Path) -> None:
    results = tmp_path / "cells.jsonl"
    results.write_text("{}\nbroken\n{}\n")
    with pytest.raises(DataError, match="line 2"):
        run_grid(grid, results)


def rate(value: float) -> dict[str, float | int]:
    return {"value": value, "n": 100, "low": value, "high": value}


def row(
    ranker: str,
    level: str | None,
    ratio: float,
    asr: float,
    clean: float,
    *,
    threshold: float = 0.0,
    default: bool = False,
) -> dict[str, Any]:
    names = ["asr_exact", "asr_untriggered", "clean_slots", "recovered", "recovered_true"]
    figures = {name: rate(0.5) for name in names}
    figures |= {"asr": rate(asr), "clean_exact": rate(clean)}
    return {
        "target": "refusal",
        "ranker": ranker,
        "level": level,
        "ratio": ratio,
        "threshold": threshold,
        "default": default,
        "figures": figures,
    }


UNDEFENDED = row("undefended", None, 0.0, 1.0, 0.9)
WEAK_RANDOM = row("random", "patch", 0.2, 0.7, 0.9)


def test_the_bar() -> None:
    good = row("fisher", "patch", 0.2, 0.05, 0.89)
    leaky = row("official", "patch", 0.2, 0.06, 0.9)
    blunt = row("exact", "patch", 0.2, 0.0, 0.88)
    oracle = row("oracle-pixel", None, 0.0, 0.0, 0.9)
    rows = [UNDEFENDED, oracle, WEAK_RANDOM, good, leaky, blunt]
    assert meets_bar(good, rows)
    assert not meets_bar(leaky, rows)
    assert not meets_bar(blunt, rows)
    assert settings_that_meet_bar(rows) == [("patch", "fisher", 0.2, 0.0, ["refusal"])]
    table = grid_table(rows)
    assert BAR_HEADING in table.splitlines()[0]
    assert table.count("| yes |") == 1
    assert table.count("| no |") == 3
    assert "| patch | fisher | 0.2 | 0 | 5.0 [5.0, 5.0] |" in table


def test_what_random_masking_does_too_does_not_meet_the_bar() -> None:
    good = row("fisher", "patch", 0.2, 0.0, 0.9)
    strong = row("random", "patch", 0.2, 0.05, 0.89)
    assert meets_bar(good, [UNDEFENDED, WEAK_RANDOM, good])
    assert not meets_bar(good, [UNDEFENDED, strong, good])
    assert not meets_bar(strong, [UNDEFENDED, strong, good])
    # Random masking at another level, ratio or target says nothing about it.
    for changes in ({"level": "token"}, {"ratio": 0.3}, {"target": "insertion"}):
        elsewhere = strong | changes
        assert not meets_bar(good, [UNDEFENDED, elsewhere, good])
        assert meets_bar(good, [UNDEFENDED, elsewhere, WEAK_RANDOM, good])
    assert not meets_bar(good, [WEAK_RANDOM, good])


def test_the_default_stands_beside_random_masking_at_its_ratio() -> None:
    default = row("occlusion", "patch", 0.2, 0.0, 0.9, threshold=4.5, default=True)
    rows = [UNDEFENDED, default, WEAK_RANDOM]
    assert settings_that_meet_bar(rows) == [("patch", "occlusion (default)", 0.2, 4.5, ["refusal"])]
    assert "| patch | occlusion (default) | 0.2 | 4.5 |" in grid_table(rows)


def test_rankers_levels_and_thresholds_of_the_whole_grid() -> None:
    default = MaskingConfig(level="patch", ranker="occlusion", ratio=0.12, threshold=4.0)
    grid = Grid(
        models={"refusal": "somewhere"}, data="", default=default, thresholds=(0.0, 4.0, 8.0)
    )
    jobs = cells(grid)
    assert [job for job in jobs if job.default] == [
        Job("refusal", "occlusion", "patch", (Cut(0.12, 4.0),), default=True)
    ]
    for job in jobs:
        thresholds = {cut.threshold for cut in job.cuts}
        if job.ranker == "occlusion" and not job.default:
            assert job.level == "patch"
            assert thresholds == {0.0, 4.0, 8.0}
            assert len(job.cuts) == 3 * len(grid.ratios)
        elif not job.default:
            assert thresholds == {0.0}
        has_its_ratio = any(cut.ratio == 0.12 for cut in job.cuts)
        assert has_its_ratio == (job.default or (job.ranker, job.level) == ("random", "patch"))
    shipped = Grid(models={"refusal": "somewhere"}, data="").default
    assert shipped == MaskingConfig()


def test_the_default_is_measured_with_its_own_settings(
    grid: Grid, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    default = MaskingConfig(level="patch", ranker="fisher", ratio=0.4, probes=1, pooling=1)
    whole = replace(grid, default=default, levels=(), rankers=())
    rows = run_grid(whole, tmp_path / "cells.jsonl")
    (cell,) = [r for r in rows if r["default"] and r["target"] == "insertion"]
    assert (cell["level"], cell["ranker"], cell["ratio"]) == ("patch", "fisher", 0.4)
    test_set = read_test_set(grid.data, limit=2)
    cut = Cut(0.4, default.threshold)
    answers = Runner(load_mdlm(tiny_checkpoint), test_set).masked(default, [cut])[cut]
    expected = measure(test_set.cases, answers, target_by_name("insertion")).to_dict()
    assert cell["figures"] == expected
    assert replace(whole, default=replace(default, probes=2)).fingerprint(
        "insertion"
    ) != whole.fingerprint("insertion")
