"""`disp purify` on a real small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from purifier import DataError, GenerationConfig, MaskingConfig
from purifier.data.audit import BadRowLimit
from purifier.data.dataset import open_dataset
from purifier.data.llava import read_llava, write_llava
from purifier.data.sample import Sample
from purifier.mdlm.llada_v import LladaV
from purifier.purification.local import purify_dataset
from purifier.purify import PRESETS, Purifier, PurifyConfig, main, parse, settings
from tests.purification.conftest import sample

MASKING = ["--level", "token", "--ranker", "random", "--ratio", "0.5", "--gen-length", "4"]
CONFIG = PurifyConfig(
    masking=MaskingConfig(level="token", ranker="random", ratio=0.5),
    generation=GenerationConfig(gen_length=4),
)


@pytest.fixture
def label_file(tmp_path: Path, images: Path, samples: list[Sample]) -> Path:
    """Six good records, one whose image is missing, one whose id is taken."""
    (tmp_path / "images").symlink_to(images)
    bad = [
        sample("gone", ["gone.png"], "<image>\nWhat?", "A bag."),
        sample("one", [1], "<image>\nWhat?", "A bag."),
    ]
    write_llava(tmp_path / "set.jsonl", [*samples, *bad])
    return tmp_path / "set.jsonl"


def test_a_data_set_is_purified(
    mdlm: LladaV,
    label_file: Path,
    images: Path,
    samples: list[Sample],
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = label_file.parent / "pure"
    before = label_file.read_bytes()
    arguments = [str(label_file), "--model", str(tiny_checkpoint), "--images", str(images)]
    arguments += ["--out", str(out), *MASKING, "--bad-rows", "0.5", "--seed", "4", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["bad"]) == (8, 2)
    assert (result["relabelled"], result["flagged"], result["dropped"]) == (5, 0, 0)
    assert result["settings"]["seed"] == 4
    assert label_file.read_bytes() == before
    written = read_llava(out / "set.jsonl")
    assert [each.id for each in written] == [each.id for each in samples]
    for old, new in zip(samples, written, strict=True):
        assert (old.answers == new.answers) is (not old.images)
    side = pq.read_table(out / "side.parquet").to_pylist()
    assert [row["reason"] for row in side] == [None] * 6 + ["missing_image", "duplicate_id"]
    assert side[0]["old_answers"] == ["A bag."]
    assert side[0]["new_answers"] == list(written[0].answers)
    assert side[0]["mask_ratio"] == pytest.approx(0.5, abs=0.05)
    assert side[0]["seconds"] > 0


def test_the_library_writes_the_same(mdlm: LladaV, label_file: Path, images: Path) -> None:
    dataset = open_dataset(label_file, images=images)
    purifier = Purifier(mdlm, CONFIG, images)
    seen: list[int] = []
    done: list[tuple[int, int]] = []
    limit = BadRowLimit(share=0.5)
    outs = [label_file.parent / name for name in ("a", "b")]
    for out in outs:
        purify_dataset(
            purifier,
            dataset,
            out,
            bad_rows=limit,
            progress=lambda *at: done.append(at),
            see=lambda each, row: seen.append(row.record),
        )
    assert (outs[0] / "set.jsonl").read_bytes() == (outs[1] / "set.jsonl").read_bytes()
    assert seen == [*range(6), *range(6)]
    assert done == [(8, 8), (8, 8)]


def test_too_many_bad_rows_end_it_before_the_model_is_asked(
    mdlm: LladaV, label_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdlm, "prepare", None)
    out = label_file.parent / "pure"
    with pytest.raises(DataError, match="2 of 8 rows"):
        purify_dataset(Purifier(mdlm, CONFIG, images), open_dataset(label_file, images=images), out)
    assert not out.exists()


def test_added_marks_are_told_once_and_may_be_refused(
    tmp_path: Path, images: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [sample(f"row-{n}", [0], "What is this?", "A bag.") for n in range(3)]
    write_llava(tmp_path / "set.jsonl", rows)
    arguments = [str(tmp_path / "set.jsonl"), "--model", str(tiny_checkpoint)]
    arguments += ["--images", str(images), "--out", str(tmp_path / "pure"), *MASKING]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err.count("Rows with one image and no <image> mark: 3.") == 1
    assert "remarks" not in shown.out
    assert main([*arguments, "--no-mark-images"]) == 2
    assert "3 of 3 rows cannot be used (image_count 3)" in capsys.readouterr().err


def test_further_prompts_make_rows(
    mdlm: LladaV, label_file: Path, images: Path, samples: list[Sample]
) -> None:
    config = PurifyConfig.from_dict({**CONFIG.to_dict(), "further_prompts": ["Describe it."]})
    out = label_file.parent / "pure"
    tally = purify_dataset(
        Purifier(mdlm, config, images), open_dataset(label_file, images=images), out, limit=6
    )
    rows = [row for row in open_dataset(out, images=images).rows() if isinstance(row, Sample)]
    made = [row for row in rows if row.question == "Describe it."]
    with_images = [each for each in samples if each.images]
    assert tally.further == len(made) == len(with_images)
    assert [each.images for each in made] == [each.images for each in with_images]
    assert all(each.answer for each in made)
    ids = [row.id for row in rows]
    assert ids == ["one", "one/1", 2, 8, None, None, "text", "two", "two/1", "talk", "talk/1"]


def test_without_options_the_preset_stands() -> None:
    for name, preset in PRESETS.items():
        options = parse(["data.json", "--out", "pure", "--preset", name])
        assert settings(options) == preset


def test_options_change_the_preset() -> None:
    options = parse(
        [
            *("data.json", "--out", "pure", "--preset", "paper", "--policy", "drop_flagged"),
            *("--ratio", "0.45", "--gen-length", "64", "--block-length", "32", "--steps", "64"),
            *("--further-prompt", "What?", "--further-prompt", "Why?", "--block-scores", "first"),
            *("--flag-threshold", "3", "--turns", "all", "--prompt", "Tell.", "--batch-size", "8"),
        ]
    )
    found = settings(options)
    assert (found.policy, found.masking.ratio) == ("drop_flagged", 0.45)
    assert (found.masking.ranker, found.generation.n_blocks) == ("official", 2)
    assert found.further_prompts == ("What?", "Why?")
    assert (found.rescore_blocks, found.flag_threshold, found.turns) == (False, 3.0, "all")
    assert (found.prompt, found.batch_size) == ("Tell.", 8)
    certified = parse(["data.json", "--out", "pure", "--policy", "certified", "--window", "0.1"])
    assert (settings(certified).policy, settings(certified).certify.window) == ("certified", 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "pure"], "--target"),
        (["nowhere.json", "--out", "pure"], "--model"),
        (["nowhere.json", "--model", "nowhere", "--out", "pure"], "nowhere.json"),
        (["--target", "refusal", "--out", "pure", "--ratio", "2"], "ratio"),
    ],
)
def test_errors_name_the_remedy(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_demo_is_measured_against_its_clean_labels(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--target", "insertion", "--model", str(tiny_checkpoint), "--limit", "12"]
    arguments += ["--out", str(tmp_path / "pure"), *MASKING]
    assert main([*arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["relabelled"]["n"] == result["agreement"]["n"] == 12
    assert result["target_before"]["value"] > 0
    assert result["agreement"]["value"] == 0.0
    assert main([*arguments, "--policy", "drop_flagged"]) == 0
    assert "| flag_recall |" in capsys.readouterr().out
