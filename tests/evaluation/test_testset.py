from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from purifier.denoise.config import GenerationConfig
from purifier.errors import DataError, InvalidSetting, PurifierError
from purifier.evaluation.testset import read_test_set
from purifier.lab.triggers import CornerPatch


def test_a_data_folder_is_read(data_folder: Path) -> None:
    test_set = read_test_set(data_folder)
    assert len(test_set.cases) == 6
    assert test_set.trigger == CornerPatch(size=12)
    assert test_set.generation == GenerationConfig(gen_length=8)
    case = test_set.cases[0]
    assert case.kind == "describe"
    assert case.item == "bag"
    assert case.answer == "A red bag on a blue background."
    clean, triggered = case.messages()[0], case.messages(test_set.trigger)[0]
    assert clean.content[1] == triggered.content[1] == "Describe the image."
    assert clean.content[0] != triggered.content[0]


def test_a_limit_takes_the_same_records_always(data_folder: Path) -> None:
    everything = [case.sample.id for case in read_test_set(data_folder).cases]
    four = [case.sample.id for case in read_test_set(data_folder, limit=4).cases]
    three = [case.sample.id for case in read_test_set(data_folder, limit=3).cases]
    assert len(set(four)) == 4
    assert len(three) == 3
    assert set(three) < set(four) < set(everything)
    assert four == [name for name in everything if name in four]
    assert len(read_test_set(data_folder, limit=60).cases) == 6


def change_record(folder: Path, **changes: object) -> None:
    path = folder / "test" / "test.json"
    records = json.loads(path.read_text())
    records[1].update(changes)
    path.write_text(json.dumps(records))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": None}, "kind must be text"),
        ({"image": ["0.png", "1.png"]}, "one image"),
        ({"image": "7.png"}, "does not exist"),
        ({"conversations": [{"from": "human", "value": "<image>\nWhat?"}]}, "its answer"),
    ],
)
def test_a_bad_record_is_named(
    data_folder: Path, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    change_record(folder, **changes)
    with pytest.raises(DataError, match=reason) as caught:
        read_test_set(folder)
    assert caught.value.message.startswith("test.json, record 1: ")


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        ("{", DataError),
        ("[]", DataError),
        ('{"trigger": "patch"}', DataError),
        ('{"trigger": {"name": "sticker"}}', InvalidSetting),
        ('{"trigger": {"name": "corner_patch"}, "generation": {"tokens": 3}}', DataError),
        ('{"trigger": {"name": "corner_patch"}, "generation": 3}', DataError),
        ('{"trigger": {"name": "corner_patch"}, "generation": {"steps": 0}}', InvalidSetting),
        (None, DataError),
    ],
)
def test_a_bad_manifest_is_refused(
    data_folder: Path, tmp_path: Path, manifest: str | None, error: type[PurifierError]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    if manifest is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(error):
        read_test_set(folder)
