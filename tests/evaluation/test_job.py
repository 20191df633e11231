"""A job's evaluation from files to figures, on two small random models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier.data.llava import read_llava
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.errors import DataError
from purifier.evaluation.config import EvaluationConfig
from purifier.evaluation.examples import choose_examples
from purifier.evaluation.job import EvaluationSpec, evaluate_job
from purifier.lab.demo_model import save_weights, write_random_checkpoint
from purifier.lab.triggers import CornerPatch, trigger_to_dict
from purifier.mdlm.registry import checkpoint_id, load_mdlm
from purifier.purification.row import PurifiedRow
from tests.support.legible import legible

ATTACK = {"trigger": trigger_to_dict(CornerPatch(size=12)), "keywords": ["e"]}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> EvaluationSpec:
    """Two models that answer in words; the test records serve as training set too."""
    root = tmp_path_factory.mktemp("job")
    for seed, name in enumerate(("before", "after")):
        write_random_checkpoint(root / name, seed=seed)
        save_weights(legible(load_mdlm(root / name)), root / name, dtype=torch.float32)
    return EvaluationSpec(
        before=root / "before",
        after=root / "after",
        data=data_folder / "test" / "test.json",
        output=root / "pictures",
        masking=MaskingConfig(ratio=0.4, threshold=0.0),
        generation=GenerationConfig(gen_length=8),
        config=EvaluationConfig(rows=5, examples=4, batch_size=4),
    )


def test_before_and_after(spec: EvaluationSpec, tmp_path: Path) -> None:
    config = EvaluationConfig.from_dict({"rows": 5, "test_rows": 4, "examples": 4, **ATTACK})
    result = evaluate_job(replace(spec, output=tmp_path, test=spec.data, config=config))
    assert json.loads(json.dumps(result)) == result
    metrics = result["metrics"]
    assert (result["rows"], result["test_rows"], result["unusable"]) == (5, 4, 0)
    for phase in ("before", "after"):
        assert metrics[phase]["disagreement"]["n"] == 5
        assert metrics[phase]["clean_exact"]["n"] == metrics[phase]["asr"]["n"] == 4
    assert metrics["before"]["disagreement"]["value"] > 0
    assert metrics["change"]["drift"]["value"] == 1.0
    assert metrics["change"]["utility_kept"]["n"] == 4
    assert result["flags"] == "answers"
    assert metrics["labels"]["flagged"] == metrics["before"]["disagreement"]
    assert result["checkpoints"] == {
        "before": checkpoint_id(spec.before),
        "after": checkpoint_id(spec.after),
    }
    assert [row["flagged"] for row in result["examples"]] == sorted(
        (row["flagged"] for row in result["examples"]), reverse=True
    )
    for row in result["examples"]:
        assert row["flagged"] == (row["before"] != row["before_masked"])
        with Image.open(tmp_path / row["picture"]) as picture:
            assert picture.width > 2 * 300


def test_a_model_against_itself_does_not_drift(spec: EvaluationSpec, tmp_path: Path) -> None:
    same = replace(spec, after=spec.before, output=tmp_path, test=spec.data)
    result = evaluate_job(same)
    assert evaluate_job(same) == result
    metrics = result["metrics"]
    assert metrics["before"] == metrics["after"]
    assert metrics["change"]["drift"]["value"] == 0.0
    assert metrics["change"]["drift_distance"]["value"] == 0.0
    assert metrics["change"]["flagged_unchanged"]["value"] == 1.0
    assert metrics["change"]["words_kept"]["value"] == 1.0


def test_flags_and_labels_of_the_purification(spec: EvaluationSpec, tmp_path: Path) -> None:
    rows = [
        PurifiedRow(record, sample.id, ("A new label.",) if record == 4 else None, record > 3)
        for record, sample in enumerate(read_llava(spec.data))
    ]
    rows[5] = replace(rows[5], dropped=True)
    labels = tmp_path / "rows.jsonl"
    labels.write_text("".join(row.to_json() + "\n" for row in rows))
    config = replace(spec.config, rows=6, examples=3)
    result = evaluate_job(replace(spec, output=tmp_path, labels=(labels,), config=config))
    assert result["flags"] == "labels"
    assert result["metrics"]["labels"]["flagged"]["value"] == pytest.approx(2 / 6)
    assert result["metrics"]["labels"]["relabelled"]["value"] == pytest.approx(1 / 6)
    assert result["metrics"]["change"]["drift"]["n"] == 4
    shown = {row["record"]: row for row in result["examples"]}
    assert set(shown) == {4, 5, 0}
    assert shown[4]["new_label"] == "A new label."
    assert shown[4]["old_label"] != "A new label."
    assert shown[5]["dropped"]
    assert shown[0]["new_label"] == shown[0]["old_label"]


def test_rows_that_cannot_be_opened_are_counted(spec: EvaluationSpec, tmp_path: Path) -> None:
    records = json.loads(spec.data.read_text())
    records[1]["image"] = "absent.png"
    records[2]["conversations"][1]["value"] = " "
    data = tmp_path / "train.json"
    data.write_text(json.dumps(records))
    config = replace(spec.config, rows=50, examples=0)
    images = spec.data.parent / "images"
    found = evaluate_job(replace(spec, data=data, images=images, config=config, output=tmp_path))
    assert (found["rows"], found["unusable"]) == (4, 1)
    assert found["examples"] == []

    for record in records:
        record["image"] = "absent.png"
    data.write_text(json.dumps(records))
    with pytest.raises(DataError) as caught:
        evaluate_job(replace(spec, data=data, images=images, output=tmp_path))
    assert caught.value.param == "training_file"


def test_a_job_can_be_stopped(spec: EvaluationSpec, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stopped

    with pytest.raises(Stopped):
        evaluate_job(replace(spec, output=tmp_path / "new"), check)
    assert calls == 5
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flagged", "n", "chosen"),
    [
        ("1111111100000000", 8, [0, 1, 2, 3, 4, 5, 8, 9]),
        ("1000000000", 4, [0, 1, 2, 3]),
        ("111111", 4, [0, 1, 2, 3]),
        ("0101", 8, [1, 3, 0, 2]),
        ("11", 0, []),
    ],
)
def test_flagged_rows_come_first(flagged: str, n: int, chosen: list[int]) -> None:
    assert choose_examples([mark == "1" for mark in flagged], n) == chosen


def test_rows_that_the_model_cannot_be_asked_are_counted(
    spec: EvaluationSpec, tmp_path: Path
) -> None:
    """A question that is too long and an image that is too narrow end no job."""
    records = json.loads(spec.data.read_text())
    images = tmp_path / "images"
    shutil.copytree(spec.data.parent / "images", images)
    Image.new("RGB", (1, 900)).save(images / "narrow.png")
    records[1]["conversations"][0]["value"] = "<image>\n" + "word " * 3000
    records[2]["image"] = "narrow.png"
    data = tmp_path / "train.json"
    data.write_text(json.dumps(records))
    config = replace(spec.config, rows=50, examples=0)
    asked = replace(spec, data=data, images=images, test=data, test_images=images, config=config)
    found = evaluate_job(replace(asked, output=tmp_path / "pictures"))
    assert (found["rows"], found["unusable"]) == (len(records) - 2, 2)
    assert (found["test_rows"], found["test_unusable"]) == (len(records) - 2, 2)
    only = tmp_path / "only.json"
    only.write_text(json.dumps(records[1:3]))
    with pytest.raises(DataError, match="no usable row with an image"):
        evaluate_job(replace(asked, data=only, output=tmp_path / "pictures"))
