"""Settings and specs: both ways through JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from purifier.errors import InvalidSetting
from purifier.tuning.config import PRESETS, FinetuneConfig
from purifier.tuning.spec import FinetuneSpec


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_settings_survive_json(preset: str) -> None:
    config = PRESETS[preset]
    assert FinetuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_papers_settings() -> None:
    paper = PRESETS["paper"]
    assert paper.parts == ("projector",)
    assert (paper.epochs, paper.batch_size, paper.learning_rate) == (4, 32, 1e-4)
    assert (paper.labels, paper.padding, paper.answer_length) == ("reference", "reference", None)


def test_what_is_left_out_takes_its_default() -> None:
    assert FinetuneConfig.from_dict({"epochs": 7}) == FinetuneConfig(epochs=7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parts", []),
        ("parts", ["projector", "projector"]),
        ("parts", ["head"]),
        ("parts", "projector"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("schedule", "linear"),
        ("labels", "all"),
        ("padding", "left"),
        ("visual_mask", 1.5),
        ("stored_dtype", "int8"),
        ("turn_mask", 1),
        ("seed", -1),
        ("rate", 1e-3),
    ],
)
def test_bad_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidSetting) as caught:
        FinetuneConfig.from_dict({field: value})
    assert caught.value.param == field
    assert field in caught.value.message


def test_specs_survive_their_file(spec: FinetuneSpec, tmp_path: Path) -> None:
    spec.write(tmp_path / "there" / "spec.json")
    assert FinetuneSpec.read(tmp_path / "there" / "spec.json") == spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checkpoint", None),
        ("output", 3),
        ("config", []),
        ("device", 0),
        ("save_seconds", -1),
        ("mark_images", "no"),
        ("folder", "x"),
    ],
)
def test_bad_specs_are_refused_by_name(spec: FinetuneSpec, field: str, value: Any) -> None:
    with pytest.raises(InvalidSetting) as caught:
        FinetuneSpec.from_dict(spec.to_dict() | {field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_is_no_spec_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "spec.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSetting, match=r"spec\.json"):
        FinetuneSpec.read(path)
