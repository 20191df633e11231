"""Triggers by attackers who know that parts of the image are masked."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from purifier.defense.fill import fill_colour
from purifier.errors import InvalidSetting
from purifier.lab.triggers import (
    AllOf,
    CornerPatch,
    PixelBox,
    SomeOf,
    Torn,
    Trigger,
    trigger_from_dict,
    trigger_to_dict,
)

SIZE = (60, 40)
IMAGE = Image.new("RGB", SIZE, (200, 100, 50))
PARTS = tuple(CornerPatch(size=6, place=(x, 3)) for x in (0, 15, 30, 45))


def drawn(trigger: Trigger, seeds: int = 60) -> list[Trigger]:
    return [trigger.drawn(np.random.default_rng(seed), SIZE) for seed in range(seeds)]


def test_cut_outs_leave_half_of_a_patch_and_everything_around_it() -> None:
    patch = CornerPatch(size=20)
    whole = np.asarray(patch.stamp(IMAGE))
    share = []
    fills = set()
    for own in drawn(Torn((patch,))):
        assert isinstance(own, Torn)
        pixels = np.asarray(own.stamp(IMAGE))
        changed = (pixels != whole).any(2)
        assert not changed[20:].any()
        assert not changed[:, 20:].any()
        share.append(changed.sum() / patch.size**2)  # type: ignore[operator]
        if own.holes:
            left, top, right, bottom = own.holes[0]
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            mean = bool((inside == fill_colour(IMAGE)).all())
            assert mean == (own.noise is None)
            fills.add(mean)
    assert max(share) <= 0.5
    assert 0.05 < np.count_nonzero(share) / len(share) < 0.95
    assert fills == {True, False}
    assert np.array_equal(np.asarray(Torn((patch,)).stamp(IMAGE)), whole)


def test_cut_outs_stay_within_the_image() -> None:
    far = Torn(
        (CornerPatch(),), holes=(PixelBox(-5, -5, 10**9, 2), PixelBox(90, 0, 99, 9)), noise=1
    )
    assert far.stamp(IMAGE).size == SIZE


def test_some_of_draws_so_many_parts() -> None:
    counts = set()
    for own in drawn(SomeOf(PARTS, least=2, most=3)):
        assert isinstance(own, AllOf)
        assert len(set(own.parts)) == len(own.parts)
        assert set(own.parts) <= set(PARTS)
        counts.add(len(own.parts))
    assert counts == {2, 3}
    assert {len(own.parts) for own in drawn(SomeOf(PARTS, least=3))} == {3, 4}  # type: ignore[attr-defined]
    assert SomeOf(PARTS).regions(SIZE) == AllOf(PARTS).regions(SIZE)


@pytest.mark.parametrize("trigger", [SomeOf(PARTS, least=2), *drawn(Torn((CornerPatch(),)), 3)])
def test_settings_survive_json(trigger: Trigger) -> None:
    read = trigger_from_dict(json.loads(json.dumps(trigger_to_dict(trigger))))
    assert read == trigger
    assert np.array_equal(np.asarray(read.stamp(IMAGE)), np.asarray(trigger.stamp(IMAGE)))


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"name": "torn", "share": 1.5}, "share"),
        ({"name": "torn", "holes": [[0, 0, 1]]}, "holes"),
        ({"name": "torn", "holes": [["a", 0, 1, 1]]}, "holes"),
        ({"name": "torn", "holes": 5}, "trigger"),
        ({"name": "torn", "noise": -1}, "noise"),
        ({"name": "some_of", "least": 0}, "least"),
        ({"name": "some_of", "least": 2}, "least"),
        ({"name": "some_of", "most": 9}, "least"),
        ({"name": "some_of", "least": "two"}, "trigger"),
    ],
)
def test_refused(settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        trigger_from_dict({**settings, "parts": [{"name": "corner_patch"}]})
    assert caught.value.param == param
