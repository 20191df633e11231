"""Masks that hide every window up to a size, and a fill that tells nothing of what it hides."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from purifier.certified.config import CertifyConfig
from purifier.certified.covering import PixelBox, covering, window_pixels
from purifier.certified.fill import fill_from_around
from purifier.errors import InvalidSetting

SIZES = ((1, 1), (2, 3), (5, 5), (7, 40), (24, 24), (37, 23))


def pixels(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    width, height = size
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("masks", [2, 3, 5, 8])
@pytest.mark.parametrize("window", [0.05, 0.2, 1 / 3, 0.5])
@pytest.mark.parametrize("size", SIZES)
def test_every_window_lies_inside_a_mask(size: tuple[int, int], window: float, masks: int) -> None:
    config = CertifyConfig(window=window, masks=masks)
    found = covering(size, config)
    assert 1 <= len(found) <= masks**2
    width, height = window_pixels(size, config)
    assert width >= window * size[0]
    assert height >= window * size[1]
    for left in range(size[0] - width + 1):
        for top in range(size[1] - height + 1):
            trigger = PixelBox(left, top, left + width, top + height)
            assert any(mask.holds(trigger) for mask in found)


@pytest.mark.parametrize("size", SIZES)
def test_masks_lie_on_the_image(size: tuple[int, int]) -> None:
    whole = PixelBox(0, 0, *size)
    found = covering(size, CertifyConfig())
    assert len(set(found)) == len(found)
    assert all(whole.holds(mask) for mask in found)


def test_more_masks_are_smaller() -> None:
    areas = [
        (mask.right - mask.left) * (mask.bottom - mask.top)
        for masks in (2, 3, 5, 8)
        for mask in covering((120, 120), CertifyConfig(masks=masks))[:1]
    ]
    assert areas == sorted(areas, reverse=True)
    assert len(set(areas)) == 4


@pytest.mark.parametrize("seed", range(8))
def test_what_is_filled_in_depends_on_no_hidden_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(3, 30)), int(rng.integers(3, 30)))
    masks = covering(size, CertifyConfig(window=0.3, masks=4))
    chosen = [masks[int(place)] for place in rng.integers(len(masks), size=2)]
    first, other = pixels(size, seed), pixels(size, seed + 100)
    for box in chosen:
        here = (slice(box.top, box.bottom), slice(box.left, box.right))
        stamped = first.copy()
        stamped[here] = other[here]
        changed = fill_from_around(Image.fromarray(stamped), chosen)
        assert fill_from_around(Image.fromarray(first), chosen).tobytes() == changed.tobytes()


def test_visible_pixels_stay_and_hidden_ones_follow_their_neighbours() -> None:
    image = pixels((20, 12), 3)
    box = PixelBox(4, 2, 9, 8)
    found = np.asarray(fill_from_around(Image.fromarray(image), [box]))
    hidden = np.zeros((12, 20), dtype=bool)
    hidden[2:8, 4:9] = True
    assert np.array_equal(found[~hidden], image[~hidden])
    around = [(image[2, 3], 1), (image[2, 9], 5), (image[1, 4], 1), (image[8, 4], 6)]
    total = sum(np.asarray(value, dtype=float) / distance for value, distance in around)
    expected = np.rint(total / sum(1 / distance for _, distance in around))
    assert np.array_equal(found[2, 4], expected)


def test_a_plain_image_stays_plain() -> None:
    plain = Image.new("RGB", (20, 20), (10, 200, 30))
    boxes = [PixelBox(0, 0, 9, 9), PixelBox(5, 5, 20, 12)]
    assert np.array_equal(np.asarray(fill_from_around(plain, boxes)), np.asarray(plain))


def test_what_has_no_neighbour_takes_the_mean_and_all_hidden_is_grey() -> None:
    image = pixels((10, 10), 1)
    bands = [PixelBox(0, 0, 10, 6), PixelBox(0, 0, 4, 10)]
    found = np.asarray(fill_from_around(Image.fromarray(image), bands))
    assert np.array_equal(found[0, 0], np.rint(image[6:, 4:].reshape(-1, 3).mean(0)))
    whole = fill_from_around(Image.fromarray(image), [PixelBox(0, 0, 10, 10)])
    assert whole.getcolors() == [(100, (128, 128, 128))]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"window": 0.0}, "window"),
        ({"window": 0.51}, "window"),
        ({"window": True}, "window"),
        ({"window": "0.2"}, "window"),
        ({"window": float("nan")}, "window"),
        ({"masks": 1}, "masks"),
        ({"masks": 17}, "masks"),
        ({"masks": 3.0}, "masks"),
        ({"tries": -1}, "tries"),
        ({"tries": 257}, "tries"),
    ],
)
def test_bad_settings_are_named(given: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        CertifyConfig(**given)  # type: ignore[arg-type]
    assert caught.value.param == param
