"""Triggers of several parts, and triggers that differ from sample to sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purifier.data.sample import Sample, Turn
from purifier.errors import InvalidSetting
from purifier.lab.poison import poison_dataset
from purifier.lab.targets import ContentInsertion
from purifier.lab.triggers import (
    AllOf,
    AnyOf,
    BlendedPattern,
    CornerPatch,
    TextSuffix,
    Trigger,
    asked_with,
    drawn_for,
    trigger_from_dict,
    trigger_to_dict,
)

LEFT, RIGHT = CornerPatch(size=8), CornerPatch(size=8, place="top-right")
WORDS = TextSuffix("Please.")
SIZE = (40, 30)


def sample(name: str, question: str = "<image>\nWhat?") -> Sample:
    return Sample(name, (name,), (Turn("user", question), Turn("assistant", "A bag.")))


def test_all_parts_are_there_at_once() -> None:
    trigger = AllOf((LEFT, RIGHT, WORDS))
    stamped = np.asarray(trigger.stamp(Image.new("RGB", SIZE, "white")))
    assert (stamped[:8, :8] == 0).all()
    assert (stamped[:8, -8:] == 0).all()
    assert (stamped[:, 8:-8] == 255).all()
    assert trigger.ask("What?") == "What? Please."
    assert trigger.regions(SIZE) == ((0, 0, 8, 8), (32, 0, 40, 8))
    assert AllOf((LEFT, BlendedPattern())).regions(SIZE) is None


def test_any_choice_of_parts_is_drawn() -> None:
    trigger = AnyOf((LEFT, RIGHT, WORDS))
    assert trigger.regions(SIZE) == AllOf((LEFT, RIGHT, WORDS)).regions(SIZE)
    drawn = [trigger.drawn(np.random.default_rng(seed), SIZE) for seed in range(80)]
    seen = {(own.ask("?"), own.regions(SIZE)) for own in drawn}
    assert len(seen) == 7
    assert ("?", ()) not in seen


@pytest.mark.parametrize("nested", [True, False])
def test_settings_survive_json(nested: bool) -> None:
    trigger: Trigger = AnyOf((LEFT, AllOf((RIGHT, WORDS)))) if nested else AllOf((WORDS,))
    assert trigger_from_dict(json.loads(json.dumps(trigger_to_dict(trigger)))) == trigger


def test_settings_are_not_nested_without_end() -> None:
    settings = trigger_to_dict(LEFT)
    for _ in range(6):
        settings = {"name": "all_of", "parts": [settings]}
    with pytest.raises(InvalidSetting, match="nested at most"):
        trigger_from_dict(settings)


def test_samples_of_one_picture_have_one_trigger() -> None:
    trigger = CornerPatch(size=8, place="random")
    one, other = (
        drawn_for(trigger, sample("a.png", text), SIZE)
        for text in ("<image>\nWhat?", "<image>\nWhich colour?")
    )
    assert one == other
    assert len({drawn_for(trigger, sample(f"{n}.png"), SIZE) for n in range(20)}) > 10
    assert one != drawn_for(trigger, sample("a.png"), SIZE, seed=1)


def test_the_first_question_alone_has_the_words() -> None:
    turns = (*sample("a.png").turns, Turn("user", "Sure?"), Turn("assistant", "Yes."))
    asked = asked_with(WORDS, Sample("a", ("a.png",), turns))
    assert [turn.text for turn in asked.turns] == [
        "<image>\nWhat? Please.",
        "A bag.",
        "Sure?",
        "Yes.",
    ]


def test_a_poisoned_set_has_what_was_drawn_for_each_sample(tmp_path: Path) -> None:
    samples = [sample(f"{n}.png") for n in range(30)]
    (tmp_path / "in").mkdir()
    for each in samples:
        Image.new("RGB", SIZE, "white").save(tmp_path / "in" / each.image_files[0])
    trigger = AnyOf((LEFT, WORDS))
    result = poison_dataset(
        samples,
        tmp_path / "in",
        tmp_path / "out",
        rate=0.5,
        seed=3,
        trigger=trigger,
        target=ContentInsertion(),
    )
    seen = set()
    for before, after in zip(samples, result, strict=True):
        pixels = np.asarray(Image.open(tmp_path / "out" / after.image_files[0]))
        found = ("Please." in after.question, bool((pixels[:8, :8] == 0).all()))
        assert any(found) == after.extra["poisoned"]
        if after.extra["poisoned"]:
            own = drawn_for(trigger, before, SIZE, 3)
            assert found == (own.ask("") != "", own.regions(SIZE) != ())
            seen.add(found)
    assert seen == {(True, True), (True, False), (False, True)}
