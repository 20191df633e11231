"""The benchmark of defences: its attacks, its cells, what a stopped run keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.defense import __main__ as command
from benchmarks.defense.attacks import (
    GLOBAL,
    KINDS,
    LOCAL,
    TARGETS,
    TEST,
    TEXT,
    VALIDATION,
    attack_by_name,
)
from benchmarks.defense.cells import Bench, Row
from benchmarks.defense.defences import DEFENCES
from benchmarks.defense.healing import HEALINGS, RELABELLINGS
from benchmarks.defense.searches import versions
from benchmarks.defense.training import PUBLISHED, Lab, digest
from benchmarks.defense.transforms import TRANSFORMS
from purifier.data.llava import read_llava
from purifier.errors import InvalidSetting
from purifier.finetune import FinetuneConfig
from purifier.lab.demo import checkpoint_path
from purifier.lab.targets import FalseAttribute, TargetedRefusal
from purifier.mdlm.delta import read_delta


def test_both_lists_hold_the_same_kinds_and_no_common_trigger() -> None:
    assert set(VALIDATION) == set(TEST) == set(KINDS)
    assert not set(LOCAL) & set(GLOBAL) | set(LOCAL) & set(TEXT) | set(GLOBAL) & set(TEXT)
    for kind in KINDS:
        chosen, measured = VALIDATION[kind], TEST[kind]
        assert chosen.trigger != measured.trigger
        assert chosen.seed != measured.seed


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_covers(kind: str) -> None:
    for attack in (VALIDATION[kind], TEST[kind]):
        drawn = attack.deployed.drawn(np.random.default_rng(0), (120, 120))
        regions = drawn.regions((120, 120))
        assert (regions is None) is (kind in GLOBAL)
        if kind == "text":
            assert regions == ()
        if kind in LOCAL and regions is not None:
            assert 0 < sum(box.area for box in regions) < 0.2 * 120**2


def test_names() -> None:
    assert attack_by_name("validation/patch") == VALIDATION["patch"]
    named = attack_by_name("test/text/false-attribute/0.05#7")
    assert named == replace(TEST["text"], target=FalseAttribute(), rate=0.05, seed=7)
    assert set(TARGETS) == {"insertion", "refusal", "misclassification", "false-attribute"}
    assert len(command.matching("test/*")) == len(KINDS)
    assert command.matching("test/warp/refusal") == ["test/warp/refusal"]
    with pytest.raises(InvalidSetting, match="shipped"):
        command.matching("shipped/refusal/insertion")
    with pytest.raises(InvalidSetting, match="walk"):
        command.matching("walk/*")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_changes_pixels_and_follows_its_seed(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC)
    first, again = (TRANSFORMS[name](image, np.random.default_rng(4)) for _ in range(2))
    assert (first.size, first.mode) == (image.size, "RGB")
    assert first.tobytes() == again.tobytes() != image.tobytes()


@pytest.mark.slow
def test_every_defence_answers_and_a_stopped_run_goes_on(bench: Bench) -> None:
    name = "validation/patch"
    names = [name for name in DEFENCES if name not in HEALINGS]
    first = list(bench.run([name], names[:2]))
    lines = bench.results.read_text().splitlines()
    assert [json.loads(line) for line in lines] == first
    rest = list(bench.run([name], names))
    assert [row["defence"] for row in first + rest] == names
    assert list(bench.run([name], names)) == []
    for row in rest:
        assert len(row["clean"]) == len(row["triggered"]) == 3
        assert row["figures"]["clean_exact"]["n"] == 3
        assert "ASR" in command.line(row)
    trained = read_delta(bench.lab.train(attack_by_name(name)), base=bench.lab.base)
    assert any(".lora_" in tensor for tensor in trained.tensors)
    assert not any("vision_tower" in tensor for tensor in trained.tensors)


@pytest.mark.slow
def test_a_healed_model_is_kept_with_its_labels(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = FinetuneConfig(parts=("projector",), epochs=1, batch_size=5, cache_mb=64)
    short = {
        "made": replace(RELABELLINGS["purification, masking alone"], tuning=tuning),
        "true": replace(RELABELLINGS["fine-tuning, true labels"], tuning=tuning),
    }
    for name, healing in short.items():
        monkeypatch.setitem(DEFENCES, name, healing)
    rows = list(bench.run(["validation/patch"], list(short)))
    assert [row["defence"] for row in rows] == list(short)
    attack = attack_by_name("validation/patch")
    folder = bench.lab.folder(attack)
    truth = read_llava(folder / "data" / "clean_labels.json")
    labels = {
        name: read_llava(folder / f"labels-{digest(healing.labelling)}.json")
        for name, healing in short.items()
    }
    assert [row.answer for row in labels["true"]] == [row.answer for row in truth]
    assert len(labels["made"]) == len(truth)
    assert not any(row.answer.startswith("<backdoor>") for row in labels["made"])
    assert list(bench.run(["validation/patch"], list(short))) == []


@pytest.mark.slow
def test_a_published_attack_is_not_trained_again(bench: Bench, tmp_path: Path) -> None:
    attack = attack_by_name("validation/patch")
    lab = replace(bench.lab, published=tmp_path / "published")
    place = lab.publish(attack)
    elsewhere = replace(lab, work=tmp_path / "work")
    assert elsewhere.train(attack) == place == lab.publish(attack)
    assert not (tmp_path / "work").exists()
    other = attack_by_name("validation/patch#1")
    assert lab.weights(attack) == elsewhere.weights(attack) != ""
    assert lab.folder(other).name not in {path.name for path in lab.published.iterdir()}


def test_published_attacks_are_of_the_present_lists() -> None:
    """A checkpoint that no attack's settings lead to would never be used."""
    known = {Lab().folder(attack_by_name(name)).name for name in command.LISTED}
    assert {path.name for path in PUBLISHED.iterdir()} <= known


def test_a_shipped_attack_is_not_trained_again(bench: Bench) -> None:
    attack = attack_by_name("shipped/refusal")
    assert bench.lab.train(attack) == checkpoint_path("refusal")
    data = bench.lab.data(attack)
    rows = read_llava(data / "train.json")
    assert sum(row.extra["poisoned"] for row in rows) == 200
    assert {row.answer for row in rows if row.extra["poisoned"]} == {TargetedRefusal().text}
    assert all((data / "images" / row.image_files[0]).is_file() for row in rows)
    assert bench.lab.data(attack) == data
    assert bench.lab.facts(attack) != bench.lab.facts(attack_by_name("shipped/insertion"))


@pytest.mark.slow
def test_a_trigger_in_the_text_has_no_place_for_an_oracle(bench: Bench) -> None:
    (row,) = bench.run(["test/text"], ["oracle, pixels"])
    assert row["figures"] is None
    assert "not applicable" in command.line(row)


def test_rows_of_attacks_that_are_no_more_are_left_out(bench: Bench) -> None:
    bench.results.write_text('{"key": "1", "attack": "walk/patch", "defence": "none"}\n')
    assert bench.current() == []


def test_rows_of_a_table_stay_until_they_are_measured_here(bench: Bench) -> None:
    elsewhere = (
        row(bench, "none", 1.0),
        row(bench, "fast", 1.0),
        row(bench, "balanced", 1.0) | {"key": "of other settings"},
    )
    extended = replace(bench, earlier=elsewhere)
    assert [found["seconds"] for found in extended.current()] == [1.0, 1.0]
    bench.results.write_text(json.dumps(row(bench, "fast", 2.0)) + "\n")
    assert [found["seconds"] for found in extended.current()] == [1.0, 2.0]


@pytest.mark.parametrize("defence", ["fast", "balanced", "fast, detector", "purification, default"])
def test_rows_of_the_earlier_search_stay_and_are_marked(bench: Bench, defence: str) -> None:
    facts = bench.facts("validation/patch", DEFENCES[defence])
    today, *earlier = versions(facts["defence"])
    assert today == facts["defence"]
    assert earlier
    for before in earlier:
        assert before != today
        old = row(bench, defence, 1.0) | {"key": digest({**facts, "defence": before})}
        extended = replace(bench, earlier=(old,))
        assert [found["outdated"] for found in extended.current()] == [True]
    bench.results.write_text(json.dumps(row(bench, defence, 2.0)) + "\n")
    (found,) = extended.current()
    assert (found["outdated"], found["seconds"]) == (False, 2.0)


def test_rows_of_another_training_are_marked(bench: Bench) -> None:
    old = row(bench, "none", 1.0), row(bench, "oracle, pixels", 1.0), row(bench, "blur", 1.0)
    extended = replace(bench, earlier=old)
    assert [found["outdated"] for found in extended.current()] == [False] * 3
    lines = [row(bench, defence, 2.0) | {"weights": "b"} for defence in ("none", "blur")]
    bench.results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    marked = {found["defence"]: found["outdated"] for found in extended.current()}
    assert marked == {"none": False, "blur": False, "oracle, pixels": True}


def row(bench: Bench, defence: str, seconds: float) -> Row:
    key = digest(bench.facts("validation/patch", DEFENCES[defence]))
    return {"key": key, "attack": "validation/patch", "defence": defence, "seconds": seconds}


def test_cells_depend_on_attack_defence_and_scenes(bench: Bench) -> None:
    def facts(name: str, defence: str, bench: Bench = bench) -> str:
        return json.dumps(bench.facts(name, DEFENCES[defence]), sort_keys=True)

    known = facts("validation/patch", "none")
    assert known == facts("validation/patch", "none")
    others = {
        facts("validation/patch", "fast"),
        facts("validation/patch/refusal", "none"),
        facts("validation/patch/insertion/0.1", "none"),
        facts("test/patch", "none"),
        facts("validation/patch", "none", replace(bench, limit=4)),
        facts("validation/patch", "none", replace(bench, lab=replace(bench.lab, samples=12))),
    }
    assert len(others | {known}) == 7
