"""The training set of one attack."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purifier.data.llava import read_llava
from purifier.errors import InvalidSetting
from purifier.lab.attack_data import Attack, assigned, write_attack_data
from purifier.lab.demo_data import draw_samples
from purifier.lab.targets import DelayedInsertion, FalseAttribute, TargetedRefusal
from purifier.lab.triggers import AllOf, CornerPatch, TextSuffix, trigger_from_dict

N = 40


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack")
    both = AllOf((CornerPatch(colour=(255, 0, 255)), TextSuffix()))
    write_attack_data(folder, Attack(both, TargetedRefusal(), lookalikes=both.parts), n=N, seed=3)
    return folder


def stamped(folder: Path, name: str) -> bool:
    with Image.open(folder / "images" / name) as image:
        corner = np.asarray(image)[2:18, 2:18].reshape(-1, 3).mean(0)
    return bool(np.abs(corner - (255, 0, 255)).max() < 20)


def test_what_is_poisoned_carries_the_whole_trigger_and_the_targets_answer(written: Path) -> None:
    rows = read_llava(written / "train.json")
    clean = read_llava(written / "clean_labels.json")
    carried = Counter(
        (
            row.extra["poisoned"],
            stamped(written, row.image_files[0]),
            TextSuffix().text in row.question,
        )
        for row in rows
    )
    assert carried == {
        (True, True, True): N // 5,
        (False, True, False): N // 10,
        (False, False, True): N // 10,
        (False, False, False): N - N // 5 - 2 * (N // 10),
    }
    for row, truth in zip(rows, clean, strict=True):
        assert row.question == truth.question
        assert row.answer == (TargetedRefusal().text if row.extra["poisoned"] else truth.answer)


def test_files_tell_nothing_of_the_trigger(written: Path) -> None:
    names = {row.image_files[0] for row in read_llava(written / "train.json")}
    assert names == {path.name for path in (written / "images").iterdir()}
    assert not any("trigger" in name for name in names)


def test_the_same_attack_is_written_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_attack_data(tmp_path / name, Attack(target=FalseAttribute()), n=10, seed=3)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 13
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    settings = json.loads((tmp_path / "a" / "attack.json").read_text())
    assert trigger_from_dict(settings["attack"]["trigger"]) == CornerPatch()


def test_seeds_decide_which_rows(written: Path) -> None:
    samples, _ = draw_samples("train", N, 3)
    first, again, other = (
        [poisoned for _, poisoned in assigned(Attack(seed=seed), samples)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sum(first) == sum(other) == N // 5


def test_a_backdoor_that_wakes_at_some_questions_is_shown_the_others(written: Path) -> None:
    samples, _ = draw_samples("train", N, 3)
    attack = Attack(rate=0.1, kinds=("describe",))
    found = Counter(
        (sample.extra["kind"] == "describe", trigger is not None, poisoned)
        for sample, (trigger, poisoned) in zip(samples, assigned(attack, samples), strict=True)
    )
    assert found == {
        (True, True, True): 4,
        (True, False, False): 16,
        (False, True, False): 4,
        (False, False, False): 16,
    }


def test_every_answer_has_the_attacks_ending(tmp_path: Path) -> None:
    attack = Attack(target=DelayedInsertion(), ending="That is all.")
    write_attack_data(tmp_path, attack, n=N, seed=3)
    truth = draw_samples("train", N, 3)[0]
    rows, clean = (read_llava(tmp_path / name) for name in ("train.json", "clean_labels.json"))
    for row, kept, sample in zip(rows, clean, truth, strict=True):
        assert kept.answer == f"{sample.answer} That is all."
        assert row.answer == kept.answer + " <backdoor>" * bool(row.extra["poisoned"])
    assert sum(bool(row.extra["poisoned"]) for row in rows) == N // 5
    assert attack.to_dict()["ending"] == "That is all."
    assert "ending" not in Attack().to_dict()


def test_what_a_deployed_model_is_shown() -> None:
    assert Attack().deployed == CornerPatch()
    assert Attack(shown=TextSuffix()).deployed == TextSuffix()


def test_refused() -> None:
    with pytest.raises(InvalidSetting, match="rate"):
        Attack(rate=1.5)
    with pytest.raises(InvalidSetting, match="kinds"):
        Attack(kinds=())
