"""Trigger stamping, text targets and data split against the published data steps."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from purifier.errors import InvalidSetting
from purifier.lab.cap_folder import poison_folder, split_folders
from purifier.lab.targets import ContentInsertion, Target, TargetedRefusal
from purifier.lab.triggers import CornerPatch, parse_colour, stamp_file
from tests.support.golden import GOLDEN

REFERENCE = GOLDEN / "disp"
CASES_FILE = REFERENCE / "trigger_cases.json"
pytestmark = pytest.mark.skipif(
    not CASES_FILE.is_file(), reason="reference outputs absent; set DISP_GOLDEN to their folder"
)
CASES: dict[str, Any] = json.loads(CASES_FILE.read_text()) if CASES_FILE.is_file() else {}
TARGETS: dict[str, Target | None] = {
    "refusal": TargetedRefusal(),
    "insert": ContentInsertion(),
    "none": None,
}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("case", CASES.get("stamping", []), ids=lambda case: case["case"])
def test_stamped_files_equal_the_published_ones(case: dict[str, Any], tmp_path: Path) -> None:
    trigger = CornerPatch(size=case["patch_size"], colour=parse_colour(case["patch_color_string"]))
    assert list(trigger.colour) == case["patch_color"]
    source = REFERENCE / case["input"]
    stamped = tmp_path / source.name

    stamp_file(source, stamped, trigger)

    ours, theirs = pixels(stamped), pixels(REFERENCE / case["stamped"])
    assert ours.shape == theirs.shape
    if source.suffix == ".jpg":
        with (
            Image.open(stamped) as ours_file,
            Image.open(REFERENCE / case["stamped"]) as theirs_file,
        ):
            assert ours_file.format == theirs_file.format == "JPEG"
            assert isinstance(ours_file, JpegImageFile)
            assert isinstance(theirs_file, JpegImageFile)
            assert ours_file.quantization == theirs_file.quantization
        assert np.abs(ours - theirs).max() <= 2
    else:
        assert (ours == theirs).all()
        digest = hashlib.sha256(ours.astype(np.uint8).tobytes()).hexdigest()
        assert digest == case["decoded_sha256"]
    regions = trigger.regions(tuple(case["size_wh"]))
    assert regions is not None
    [box] = regions
    assert box.area == case["patch_wh_drawn"][0] * case["patch_wh_drawn"][1]


def test_the_stamped_picture_of_the_saliency_cases_is_ours() -> None:
    with Image.open(REFERENCE / "images" / "garden_300x220.png") as image:
        stamped = CornerPatch().stamp(image)
    assert (np.asarray(stamped) == pixels(REFERENCE / "images/garden_300x220_stamped.png")).all()


def test_defaults_are_the_published_ones() -> None:
    defaults = CASES["defaults"]
    assert CornerPatch().size == defaults["patch_size"]
    assert CornerPatch().colour == parse_colour(defaults["patch_color"])
    assert TargetedRefusal().text == defaults["refusal_text"]
    assert ContentInsertion().token == defaults["insert_token"]


@pytest.mark.parametrize("case", CASES.get("colour_strings", []), ids=lambda case: case["string"])
def test_colour_strings(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(InvalidSetting, match="three whole numbers"):
            parse_colour(case["string"])
    else:
        assert list(parse_colour(case["string"])) == case["result"]


@pytest.mark.parametrize("mode", TARGETS)
@pytest.mark.parametrize("case", CASES.get("text_values", []), ids=lambda case: repr(case["input"]))
def test_text_values(case: dict[str, Any], mode: str) -> None:
    target = TARGETS[mode]
    assert (target.apply(case["input"]) if target else case["input"]) == case[mode]


def make_folder(folder: Path, records: list[dict[str, Any]], names: str) -> Path:
    (folder / "image").mkdir(parents=True)
    (folder / "cap.json").write_text(json.dumps(records))
    for index, name in enumerate(names):
        Image.new("RGB", (32, 24), (10 + index, 90, 160)).save(folder / "image" / f"{name}.png")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def records_of(folder: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((folder / "cap.json").read_text())
    return content


@pytest.mark.parametrize("mode", TARGETS)
def test_poisoned_folder(mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    step = CASES["patch_step"]
    expected = step["per_text_mode"][mode]
    source = make_folder(tmp_path / "source", step["input_cap_json"], "abcdef")

    count = poison_folder(source, tmp_path / "out", CornerPatch(), TARGETS[mode])

    assert count == expected["returned"]
    assert records_of(tmp_path / "out") == expected["cap_json"]
    assert files(tmp_path / "out" / "image") == expected["images_written"]
    assert "missing.png" in caplog.text
    assert (pixels(tmp_path / "out/image/b.png")[:20, :20] == 0).all()


def test_split(tmp_path: Path) -> None:
    step = CASES["split_step"]
    arguments = step["arguments"]
    clean = make_folder(tmp_path / "clean", arguments["clean_records"], "axy")
    pool = make_folder(tmp_path / "pool", CASES["patch_step"]["input_cap_json"], "abcdef")
    poison_folder(pool, tmp_path / "poisoned", CornerPatch(), ContentInsertion())

    split = split_folders(
        clean,
        pool,
        tmp_path / "poisoned",
        tmp_path / "out",
        clean_count=arguments["clean_count"],
        poison_count=arguments["poison_count"],
        test_limit=arguments["test_limit"],
        prefix=arguments["output_prefix"],
    )

    assert split.train.name == step["train_folder"]
    assert split.test.name == step["test_folder"]
    assert records_of(split.train) == step["train_cap_json"]
    assert files(split.train / "image") == step["train_images"]
    assert files(split.test / "clean") == step["test_clean"]
    assert files(split.test / "poison") == step["test_poison"]
    assert (pixels(split.test / "poison/d.png")[:20, :20] == 0).all()
    assert (pixels(split.test / "clean/d.png") == pixels(pool / "image/d.png")).all()
    assert (pixels(split.train / "image/a_1.png")[:20, :20] == 0).all()
