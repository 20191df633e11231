"""The purification benchmark on a small random model: all stages, shared and kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="the benchmark draws with matplotlib (dev extra)")

from benchmarks.purification import main
from benchmarks.purification_cells import CELLS, CLEAN, PLAIN, SETTINGS, Cell, Plan
from benchmarks.purification_report import bar_list, meets_bar
from benchmarks.purification_stages import label_figures, labels_of, purified_rows
from purifier.data.llava import read_llava, write_llava
from purifier.data.sample import Sample
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.lab.demo_model import save_weights, write_random_checkpoint
from purifier.lab.poison import poison_sample, triggered_name
from purifier.lab.targets import target_by_name
from purifier.mdlm.delta import is_delta
from purifier.mdlm.registry import load_mdlm
from purifier.purify import PurifiedRow, Purifier, PurifyConfig
from tests.evaluation.conftest import write_data_folder
from tests.support.legible import legible

SENSITIVE = PurifyConfig(
    masking=MaskingConfig(ratio=0.4, threshold=0.0),
    generation=GenerationConfig(gen_length=8),
    flag_threshold=8e-4,
    detectors=(),
)
"""A random model disagrees with itself by 6e-4 to 13e-4 nats on these rows: some are flagged."""


@pytest.fixture(autouse=True)
def _sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "default", SENSITIVE)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A model that answers in words, and six training rows of which every third is poisoned."""
    root = tmp_path_factory.mktemp("purification")
    write_random_checkpoint(root / "models" / "insertion", seed=0)
    mdlm = legible(load_mdlm(root / "models" / "insertion"))
    save_weights(mdlm, root / "models" / "insertion", dtype=torch.float32)
    data = write_data_folder(root / "data")
    clean = read_llava(data / "test" / "test.json")
    (data / "train").mkdir()
    shutil.copytree(data / "test" / "images", data / "train" / "images")
    for name in ("0.png", "1.png"):
        shutil.copy(
            data / "test" / "images" / name, data / "train" / "images" / triggered_name(name)
        )
    target = target_by_name("insertion")
    poisoned = [
        row if number % 3 else poison_sample(row, target) for number, row in enumerate(clean)
    ]
    write_llava(data / "train" / "clean_labels.json", clean)
    write_llava(data / "train" / "insertion.json", poisoned)
    return Plan(models=root / "models", data=data, work=root / "work", limit=3, purify_batch=4)


def test_a_policy_gives_what_the_purifier_gives(plan: Plan) -> None:
    """Shared answers and flags make the rows that one purification would make."""
    samples = plan.samples("insertion")
    for name in ("relabel_all", "flag_then_relabel", "drop_flagged"):
        cell = CELLS[f"default/{name}"]
        rows, seconds = purified_rows(plan, "insertion", cell)
        config: PurifyConfig = plan.purification("default", name)
        mdlm = load_mdlm(plan.checkpoint("insertion"))
        alone = Purifier(mdlm, config, plan.images).purify(samples)
        assert [told(row) for row in rows] == [told(row) for row in alone]
        assert seconds > 0
    assert 0 < sum(row.flagged is True for row in alone) < len(alone)


def told(row: PurifiedRow) -> Any:
    return row.record, row.answers, row.flagged, row.dropped, row.problem


def test_a_stopped_purification_goes_on(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = purified_rows(plan, "insertion", CELLS["default/relabel_all"])
    shutil.copytree(plan.work / "rows", tmp_path / "rows")
    file = next((tmp_path / "rows").glob("*default-relabel_all*"))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:30])
    asked: list[int] = []
    purify = Purifier.purify

    def noted(self: Purifier, samples: list[Sample], **given: Any) -> list[PurifiedRow]:
        asked.extend(sample.source.record for sample in samples if sample.source)
        return purify(self, samples, **given)

    monkeypatch.setattr(Purifier, "purify", noted)
    moved = replace(plan, work=tmp_path)
    again, _ = purified_rows(moved, "insertion", CELLS["default/relabel_all"])
    assert [told(row) for row in again] == [told(row) for row in whole]
    assert asked == [2, 3, 4, 5]
    asked.clear()
    purified_rows(moved, "insertion", CELLS["default/relabel_all"])
    assert asked == []


def test_labels_of_the_controls(plan: Plan) -> None:
    plain, _, _ = labels_of(plan, "insertion", PLAIN)
    assert [row.answer for row in plain] == [row.answer for row in plan.samples("insertion")]
    clean, rows, seconds = labels_of(plan, "insertion", CLEAN)
    assert [row.answer for row in clean] == [row.answer for row in plan.samples("clean_labels")]
    assert [row.images for row in clean] == [row.images for row in plan.samples("insertion")]
    assert seconds == 0
    figures = label_figures(plan, "insertion", rows, clean)
    assert (figures["target_left"]["value"], figures["target_left"]["n"]) == (0.0, 2)
    assert figures["true_triggered"]["value"] == figures["true_clean"]["value"] == 1.0
    figures = label_figures(plan, "insertion", rows, plain)
    assert figures["target_left"]["value"] == 1.0
    assert figures["true_triggered"]["value"] == 0.0
    assert figures["caught"]["value"] is None


def test_labels_are_counted_by_what_became_of_them(plan: Plan) -> None:
    samples = plan.samples("insertion")
    kept = [samples[0], samples[1].with_answers(("Wrong.",)), *samples[4:]]
    rows = [
        PurifiedRow(0, None, flagged=False),
        PurifiedRow(1, None, answers=("Wrong.",), flagged=True),
        PurifiedRow(2, None, flagged=True, dropped=True),
        PurifiedRow(3, None, flagged=True, dropped=True),
        PurifiedRow(4, None, flagged=False),
        PurifiedRow(5, None, flagged=False),
    ]
    figures = label_figures(plan, "insertion", rows, kept)
    values = {name: (rate["value"], rate["n"]) for name, rate in figures.items()}
    assert values == {
        "relabelled": (1 / 6, 6),
        "dropped": (2 / 6, 6),
        "caught": (0.5, 2),
        "false_alarms": (0.5, 4),
        "target_left": (1.0, 1),
        "true_triggered": (0.0, 1),
        "true_clean": (2 / 3, 3),
    }


def test_the_benchmark_writes_its_files(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"--models": plan.models, "--data": plan.data, "--out": tmp_path, "--work": plan.work}
    paths = [str(part) for pair in places.items() for part in pair]
    settings = "--limit 3 --epochs 1 --purify-batch 4"
    cells = "--targets insertion --cells default/drop_flagged clean-labels poisoned-labels"
    assert main([*paths, *settings.split(), *cells.split()]) == 0
    report = json.loads((tmp_path / "purification.json").read_text())
    assert report["command"] == f"python -m benchmarks.purification {settings}"
    assert [row["cell"] for row in report["cells"]] == [
        "default/drop_flagged",
        "poisoned-labels",
        "clean-labels",
    ]
    for row in report["cells"]:
        assert row["figures"]["asr"]["n"] == row["kept"]["n"] == 3
        assert row["tune_seconds"] > 0
        assert row["training"]["rows"] == (6 if row["policy"] is None else row["training"]["rows"])
    made = list((plan.work / "tuned").glob("*/purified"))
    assert len(made) == 3
    assert all(is_delta(folder) for folder in made)
    text = (tmp_path / "purification.md").read_text()
    assert "| (poisoned model) |" in text
    assert text.count("| clean-labels |") == 2
    with Image.open(tmp_path / "purification.png") as figure:
        assert figure.size[0] > 1000
    assert capsys.readouterr().out.count("ASR") == 3

    lines = (tmp_path / "purification.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "purification.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    times = {folder: (folder / "delta.json").stat().st_mtime_ns for folder in made}
    assert main([*paths, *settings.split(), *cells.split(), "--no-figure"]) == 0
    assert capsys.readouterr().out.count("ASR") == 1
    assert {folder: (folder / "delta.json").stat().st_mtime_ns for folder in made} == times
    again = json.loads((tmp_path / "purification.json").read_text())
    assert [row["figures"] for row in again["cells"]] == [row["figures"] for row in report["cells"]]
    assert [row["kept"] for row in again["cells"]] == [row["kept"] for row in report["cells"]]


def cell_row(name: str, target: str, asr: float | None, kept: float) -> dict[str, Any]:
    return {
        "cell": name,
        "target": target,
        "figures": {"asr": {"value": asr}},
        "kept": {"value": kept},
    }


def test_the_bar() -> None:
    assert meets_bar(cell_row("x", "refusal", 0.02, 0.98))
    assert not meets_bar(cell_row("x", "refusal", 0.021, 1.0))
    assert not meets_bar(cell_row("x", "refusal", 0.0, 0.979))
    assert not meets_bar(cell_row("x", "refusal", None, 1.0))
    rows = [cell_row("x", "refusal", 0.0, 1.0), cell_row("x", "insertion", 0.5, 1.0)]
    assert bar_list(rows, ["insertion", "refusal"]) == (
        "- x: met for refusal; missed for insertion\n"
    )


def test_every_policy_under_both_settings_and_every_control_is_a_cell() -> None:
    pairs = {(cell.setting, cell.policy) for cell in CELLS.values()}
    for setting in ("paper", "default"):
        for policy in ("relabel_all", "flag_then_relabel", "drop_flagged"):
            assert (setting, policy) in pairs
    assert {("random", "relabel_all"), (None, None)} <= pairs
    assert Cell("clean-labels") == CLEAN
