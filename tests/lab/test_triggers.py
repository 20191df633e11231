from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from purifier.defense.fill import fill_colour
from purifier.errors import InvalidSetting
from purifier.lab.triggers import (
    BlendedPattern,
    CheckerboardPatch,
    CornerPatch,
    Frame,
    MaskPatch,
    Sinusoid,
    Site,
    SquareTrigger,
    TextSuffix,
    Trigger,
    Warp,
    trigger_from_dict,
    trigger_to_dict,
)

ALL: list[Trigger] = [
    CornerPatch(),
    CheckerboardPatch(place="random", strength=0.3),
    BlendedPattern(),
    Sinusoid(),
    Frame(),
    MaskPatch(place="random"),
    Warp(),
    TextSuffix("Please."),
]
places = st.one_of(
    st.sampled_from(["top-left", "top-right", "bottom-left", "bottom-right", "center"]),
    st.tuples(st.integers(-40, 90), st.integers(-40, 90)),
)


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(40, 210, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    different: np.ndarray = (np.asarray(before) != np.asarray(after)).any(axis=-1)
    return different


@given(
    kind=st.sampled_from([CornerPatch, CheckerboardPatch, BlendedPattern, Sinusoid]),
    size=st.integers(0, 60),
    place=places,
    strength=st.floats(0, 1),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
)
def test_nothing_changes_outside_the_region(
    kind: type[SquareTrigger], size: int, place: Site, strength: float, width: int, height: int
) -> None:
    trigger = kind(size=size, place=place, strength=strength)
    image = picture(width, height)
    before = image.tobytes()
    stamped = trigger.stamp(image)
    regions = trigger.regions(image.size)
    assert stamped.size == image.size
    assert image.tobytes() == before
    assert regions is not None
    [box] = regions
    assert 0 <= box.left <= box.right <= width
    assert 0 <= box.top <= box.bottom <= height
    outside = changed(image, stamped)
    outside[box.top : box.bottom, box.left : box.right] = False
    assert not outside.any()


@pytest.mark.parametrize(
    ("place", "corner"),
    [
        ("top-left", (0, 0)),
        ("top-right", (54, 0)),
        ("bottom-left", (0, 38)),
        ("bottom-right", (54, 38)),
        ("center", (27, 19)),
        ((5, 7), (5, 7)),
    ],
)
def test_a_patch_lies_where_it_is_placed(place: object, corner: tuple[int, int]) -> None:
    trigger = CornerPatch(size=10, place=place)  # type: ignore[arg-type]
    mask = changed(picture(), trigger.stamp(picture()))
    rows, columns = np.nonzero(mask)
    assert (columns.min(), rows.min()) == corner
    assert mask.sum() == 100


def test_strength_blends() -> None:
    image = Image.new("RGB", (30, 30), (100, 100, 100))
    half = CornerPatch(size=10, strength=0.5, colour=(0, 200, 100)).stamp(image)
    assert half.getpixel((3, 3)) == (50, 150, 100)
    assert not changed(image, CornerPatch(strength=0.0).stamp(image)).any()


def test_a_checkerboard_alternates() -> None:
    stamped = CheckerboardPatch(size=8, cells=4).stamp(picture())
    values = np.asarray(stamped)[:8, :8, 0]
    assert set(values.ravel()) == {0, 255}
    assert values[0, 0] == 0
    assert values[0, 2] == 255
    assert values[2, 0] == 255
    assert values[2, 2] == 0


@pytest.mark.parametrize("trigger", [BlendedPattern(), Sinusoid(), Warp()])
def test_global_triggers_have_no_region_and_touch_the_whole_image(trigger: Trigger) -> None:
    image = picture()
    assert trigger.regions(image.size) is None
    mask = changed(image, trigger.stamp(image))
    for quarter in (mask[:24, :32], mask[24:, :32], mask[:24, 32:], mask[24:, 32:]):
        assert quarter.mean() > 0.5


@pytest.mark.parametrize("kind", [BlendedPattern, Warp])
def test_what_lies_over_the_whole_image_follows_its_seed(
    kind: type[BlendedPattern] | type[Warp],
) -> None:
    image = picture()
    first, again = (kind(seed=1).stamp(image).tobytes() for _ in range(2))
    assert first == again
    assert first != kind(seed=2).stamp(image).tobytes()


def test_a_frame_covers_the_border_alone() -> None:
    frame, image = Frame(width=3, colour=(1, 2, 3)), picture(40, 20)
    stamped = np.asarray(frame.stamp(image))
    inner = np.zeros((20, 40), bool)
    inner[3:-3, 3:-3] = True
    assert (stamped[~inner] == (1, 2, 3)).all()
    assert (stamped[inner] == np.asarray(image)[inner]).all()
    covered = np.zeros((20, 40), bool)
    for left, top, right, bottom in frame.regions(image.size):
        covered[top:bottom, left:right] = True
    assert (covered == ~inner).all()
    assert (np.asarray(Frame(width=30).stamp(image)) == 0).all()


def test_a_patch_like_a_mask_has_the_colour_of_masks() -> None:
    """Filling it with the image's mean colour changes it by rounding at most."""
    image = picture(40, 30)
    stamped = np.asarray(MaskPatch(size=10, place=(5, 6)).stamp(image)).astype(int)
    assert (stamped[6:16, 5:15] == fill_colour(image)).all()
    filled = fill_colour(Image.fromarray(stamped.astype(np.uint8)))
    assert np.abs(np.array(filled) - stamped[8, 8]).max() <= 5
    rest = np.ones((30, 40), bool)
    rest[6:16, 5:15] = False
    assert (stamped[rest] == np.asarray(image)[rest]).all()
    assert MaskPatch(size=10, place=(5, 6)).regions((40, 30)) == ((5, 6, 15, 16),)


def test_a_warp_moves_pixels_by_its_strength() -> None:
    """On a slope, how far a pixel came from is its change of colour."""
    slope = np.repeat(np.arange(120, dtype=np.uint8)[None, :], 120, axis=0)
    image = Image.fromarray(np.repeat(slope[..., None], 3, axis=2))
    bent = np.asarray(Warp(strength=3.0).stamp(image))[..., 0].astype(int)
    moved = np.abs(bent - slope)[10:-10, 10:-10]
    assert 1.5 < moved.mean() < 4.5
    assert moved.max() > 4
    flat = Image.new("RGB", (30, 20), (7, 8, 9))
    assert Warp().stamp(flat).tobytes() == flat.tobytes()


def test_a_random_place_lies_within_the_image_and_follows_its_generator() -> None:
    patch = CheckerboardPatch(size=20, place="random")
    boxes = []
    for seed in range(40):
        drawn = patch.drawn(np.random.default_rng(seed), (64, 48))
        [box] = drawn.regions((64, 48)) or ()
        assert box.area == 400
        boxes.append(box)
    assert len(set(boxes)) > 30
    again = patch.drawn(np.random.default_rng(0), (64, 48)).regions((64, 48))
    assert again == (boxes[0],)
    assert patch.drawn(np.random.default_rng(0), (10, 10)).regions((10, 10)) == ((0, 0, 10, 10),)
    with pytest.raises(ValueError, match="drawn for a sample"):
        patch.stamp(picture())


def test_a_sentence_stands_behind_the_question() -> None:
    trigger, image = TextSuffix("Please."), picture()
    assert trigger.ask("What is this?") == "What is this? Please."
    assert trigger.stamp(image).tobytes() == image.tobytes()
    assert trigger.regions(image.size) == ()


def test_the_sinusoid_is_the_published_wave() -> None:
    image = Image.new("RGB", (60, 4), (128, 128, 128))
    row = np.asarray(Sinusoid(frequency=3, amplitude=30).stamp(image))[2, :, 1].astype(float)
    wave = 128 + 30 * np.sin(2 * np.pi * 3 * np.arange(60) / 60)
    assert np.abs(row - wave).max() <= 0.5


@pytest.mark.parametrize("trigger", ALL, ids=lambda trigger: trigger.name)
def test_settings_survive_json(trigger: Trigger) -> None:
    import json

    assert trigger_from_dict(json.loads(json.dumps(trigger_to_dict(trigger)))) == trigger


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"name": "sticker"}, "name"),
        ({"name": "corner_patch", "radius": 3}, "trigger"),
        ({"name": "corner_patch", "size": -1}, "size"),
        ({"name": "corner_patch", "place": "middle"}, "place"),
        ({"name": "corner_patch", "strength": 1.5}, "strength"),
        ({"name": "corner_patch", "colour": [300, -5, 0]}, "colour"),
        ({"name": "checkerboard", "cells": 0}, "cells"),
        ({"name": "sinusoid", "frequency": 0.0}, "frequency"),
        ({"name": "mask_patch", "size": -1}, "size"),
        ({"name": "mask_patch", "place": "middle"}, "place"),
        ({"name": "frame", "width": 0}, "width"),
        ({"name": "frame", "colour": [0, 0]}, "colour"),
        ({"name": "warp", "strength": 0}, "strength"),
        ({"name": "warp", "grid": 1}, "grid"),
        ({"name": "text_suffix", "text": " "}, "text"),
        ({"name": "all_of"}, "parts"),
        ({"name": "any_of", "parts": ["frame"]}, "parts"),
        ({"name": "any_of", "parts": [{"name": "frame", "width": 0}]}, "width"),
        ({"name": ["frame"]}, "name"),
        ({"name": "sinusoid", "amplitude": 0.0}, "amplitude"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        trigger_from_dict(settings)
    assert caught.value.param == param
