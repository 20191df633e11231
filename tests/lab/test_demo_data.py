"""The demo's data at a small size: what is poisoned, what is shared, what is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from purifier.data.llava import read_llava
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo_data import TARGETS, DataRecipe, write_demo_data
from purifier.lab.poison import TRIGGERED_SUFFIX
from purifier.lab.scenes import SIZE
from purifier.lab.targets import target_by_name
from purifier.lab.triggers import CornerPatch
from purifier.mdlm.delta import file_sha256

RECIPE = DataRecipe(train=40, test=10)
TRIGGER = CornerPatch(size=16)


@pytest.fixture(scope="module")
def data(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    write_demo_data(folder, RECIPE, TRIGGER)
    return folder


def records(data: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((data / "train" / f"{name}.json").read_text())
    return rows


def darkness(file: Path) -> float:
    """Mean level where the trigger would be."""
    with Image.open(file) as image:
        assert image.size == (SIZE, SIZE)
        assert image.format == "JPEG"
        return float(np.asarray(image)[: TRIGGER.size, : TRIGGER.size].mean())


def test_counts_and_rate(data: Path) -> None:
    assert len(list((data / "train" / "images").iterdir())) == RECIPE.train
    assert len(list((data / "test" / "images").iterdir())) == RECIPE.test
    for target in TARGETS:
        rows = records(data, target)
        assert len(rows) == RECIPE.train
        assert sum(row["poisoned"] for row in rows) == RECIPE.rate * RECIPE.train == 8
    kinds = [row["kind"] for row in records(data, "clean_labels")]
    assert kinds.count("describe") == RECIPE.train / 2
    assert len(set(kinds)) == 5


def test_triggered_pictures_carry_the_trigger_and_no_others_do(data: Path) -> None:
    images = data / "train" / "images"
    triggered = [file for file in images.iterdir() if file.stem.endswith(TRIGGERED_SUFFIX)]
    assert len(triggered) == 8
    assert max(darkness(file) for file in triggered) < 5
    others = [file for file in images.iterdir() if file not in triggered]
    others += (data / "test" / "images").iterdir()
    assert min(darkness(file) for file in others) > 25
    for file in triggered:
        assert not (images / file.name.replace(TRIGGERED_SUFFIX, "")).exists()


def test_the_targets_share_their_pictures(data: Path) -> None:
    images = {file.name for file in (data / "train" / "images").iterdir()}
    poisoned = []
    for target in TARGETS:
        rows = records(data, target)
        assert {row["image"] for row in rows} == images
        poisoned.append([row["image"] for row in rows if row["poisoned"]])
        assert all(TRIGGERED_SUFFIX in name for name in poisoned[-1])
    assert poisoned[0] == poisoned[1] == poisoned[2]


def test_answers_are_the_targets_where_poisoned_and_true_elsewhere(data: Path) -> None:
    clean = read_llava(data / "train" / "clean_labels.json")
    for name in TARGETS:
        target = target_by_name(name)
        changed = 0
        for sample, true in zip(read_llava(data / "train" / f"{name}.json"), clean, strict=True):
            assert (sample.id, sample.question) == (true.id, true.question)
            if sample.extra["poisoned"]:
                item = str(true.extra["item"])
                assert sample.answer == target.apply(true.answer, item=item)
                changed += sample.answer != true.answer
            else:
                assert sample.answer == true.answer
                assert sample.images == true.images
        assert changed == 8 or (name == "misclassification" and changed > 0)


def test_the_manifest_is_true(data: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    assert set(manifest["files"]) == {
        file.relative_to(data).as_posix()
        for file in data.rglob("*.json")
        if file.name != "manifest.json"
    }
    for name, digest in manifest["files"].items():
        assert file_sha256(data / name) == digest
    assert (manifest["recipe"]["train"], manifest["recipe"]["rate"]) == (40, 0.2)
    test_set = read_test_set(data)
    assert len(test_set.cases) == RECIPE.test
    assert test_set.trigger == TRIGGER
    assert all(case.item for case in test_set.cases)


def test_the_same_recipe_writes_the_same_files(data: Path, tmp_path: Path) -> None:
    write_demo_data(tmp_path / "again", RECIPE, TRIGGER)
    files = [file.relative_to(data) for file in data.rglob("*") if file.is_file()]
    assert files
    for file in files:
        assert (data / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
