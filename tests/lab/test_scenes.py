from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purifier.errors import DataError
from purifier.lab.scenes import (
    COLOURS,
    ITEMS,
    KINDS,
    QUESTIONS,
    SIZE,
    ItemPictures,
    Scene,
    describe,
    question,
    questions,
    to_jpeg,
    with_article,
)
from tests.lab.conftest import some_scenes


def test_pixels_and_questions_depend_on_the_seed_alone(fashion_mnist: Path) -> None:
    pictures, again = ItemPictures("validation"), ItemPictures("validation")
    scenes = [pictures.draw_scene(np.random.default_rng(seed)) for seed in range(5)]
    assert scenes == [again.draw_scene(np.random.default_rng(seed)) for seed in range(5)]
    assert len(set(scenes)) == 5
    for scene in scenes:
        drawn = pictures.render(scene)
        assert drawn.size == (SIZE, SIZE)
        assert drawn.mode == "RGB"
        assert to_jpeg(drawn) == to_jpeg(again.render(scene))
        asked = questions(scene, np.random.default_rng(1))
        assert asked == questions(scene, np.random.default_rng(1))


def test_no_source_picture_is_in_two_splits(fashion_mnist: Path) -> None:
    train, validation, test = (ItemPictures(split) for split in ("train", "validation", "test"))
    sources = {
        name: {int(source) for item in split.by_item for source in item}
        for name, split in (("train", train), ("validation", validation), ("test", test))
    }
    assert not sources["train"] & sources["validation"]
    assert sources["train"] | sources["validation"] == set(range(len(train.pixels)))
    # The test split numbers the pictures of another file.
    assert sources["test"] == set(range(10_000))
    assert len(test.pixels) == 10_000 != len(train.pixels)
    drawn = [validation.draw_scene(np.random.default_rng(seed)).source for seed in range(200)]
    assert set(drawn) <= sources["validation"]


def test_scenes_show_every_item_in_two_different_colours(fashion_mnist: Path) -> None:
    pictures = ItemPictures("test")
    rng = np.random.default_rng(0)
    scenes = [pictures.draw_scene(rng) for _ in range(300)]
    assert {scene.item_name for scene in scenes} == set(ITEMS)
    assert {scene.item_colour for scene in scenes} == set(COLOURS)
    assert all(scene.item_colour != scene.background_colour for scene in scenes)
    assert all(scene.source in pictures.by_item[scene.item] for scene in scenes)


def test_the_corners_have_the_colour_of_the_background(fashion_mnist: Path) -> None:
    """The named background is the nearest of all colours to what most corners show."""
    pictures = ItemPictures("test")
    rng = np.random.default_rng(2)
    names = list(COLOURS)
    palette = np.array(list(COLOURS.values()), dtype=float)
    right = 0
    for _ in range(60):
        scene = pictures.draw_scene(rng)
        with Image.open(io.BytesIO(to_jpeg(pictures.render(scene)))) as image:
            pixels = np.asarray(image, dtype=float)
        corners = pixels[np.ix_([0, 1, -2, -1], [0, 1, -2, -1])].reshape(-1, 3)
        nearest = np.abs(np.median(corners, axis=0) - palette).sum(-1).argmin()
        right += names[nearest] == scene.background_colour
    assert right >= 54


def shown(scene: Scene, question_text: str) -> str:
    """What a yes/no question asks about, as the scene has it."""
    if question_text.startswith("Is this"):
        return with_article(scene.item_name)
    return scene.background_colour if "background" in question_text else scene.item_colour


def test_answers_agree_with_the_scene() -> None:
    rng = np.random.default_rng(4)
    verdicts = []
    for scene in some_scenes(400):
        asked = {qa.kind: qa for qa in questions(scene, rng)}
        assert tuple(asked) == KINDS
        assert asked["describe"].answer == describe(
            scene.item_name, scene.item_colour, scene.background_colour
        )
        assert asked["what"].answer.lower() == f"{with_article(scene.item_name)}."
        assert asked["item_colour"].answer == f"{scene.item_colour.capitalize()}."
        assert asked["background_colour"].answer == f"{scene.background_colour.capitalize()}."
        text, answer = asked["yes_no"].question, asked["yes_no"].answer
        truth = re.search(rf"\b{shown(scene, text)}\?", text) is not None
        assert answer == f"{'Yes' if truth else 'No'}, it is {shown(scene, text)}."
        verdicts.append(truth)
        for kind in ("describe", "what", "item_colour", "background_colour"):
            assert asked[kind].question in QUESTIONS[kind]
    # Yes half of the time, within five standard deviations.
    assert abs(sum(verdicts) - 200) < 50


def test_every_form_of_a_question_is_asked() -> None:
    scene = some_scenes(1)[0]
    for kind in KINDS:
        rng = np.random.default_rng(0)
        texts = {question(scene, kind, rng).question for _ in range(200)}
        for form in QUESTIONS[kind]:
            pattern = (
                re.escape(form).replace(r"\{item\}", r"[a-z ]+").replace(r"\{colour\}", r"[a-z]+")
            )
            assert any(re.fullmatch(pattern, text) for text in texts)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bag", "a bag"),
        ("orange bag", "an orange bag"),
        ("boat", "a boat"),
        ("trousers", "trousers"),
        ("orange trousers", "orange trousers"),
    ],
)
def test_articles(words: str, expected: str) -> None:
    assert with_article(words) == expected


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (("dress", "red", "blue"), "A red dress on a blue background."),
        (("bag", "orange", "pink"), "An orange bag on a pink background."),
        (("trousers", "green", "orange"), "Green trousers on an orange background."),
    ],
)
def test_descriptions(slots: tuple[str, str, str], expected: str) -> None:
    assert describe(*slots) == expected


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        ItemPictures("train", tmp_path)
