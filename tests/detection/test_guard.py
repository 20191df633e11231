"""What a detector masks by sight, and what a detection says of the answer that follows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import Defended, defend
from purifier.defense.sites import PatchSite
from purifier.denoise import FAST
from purifier.detection import guard as guard_module
from purifier.detection.guard import Detection
from purifier.detection.search import Found
from purifier.detection.shapes import shape_of
from purifier.lab.demo import checkpoint_path
from purifier.mdlm.base import Inputs, Mdlm, Message, Prompt
from purifier.mdlm.detector import Detector
from purifier.mdlm.patterns import SIDE, Pattern
from purifier.mdlm.registry import load_mdlm

QUESTION = "What is this?"
MASKING = MaskingConfig(ranker="random", ratio=0.1)


@pytest.fixture(scope="module")
def mdlm() -> Mdlm:
    return load_mdlm(checkpoint_path("base"))


def corner() -> Pattern:
    """A red square over an eighth of each side."""
    pixels = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    pixels[:8, :8] = True
    values = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    values[:8, :8, 0] = 250
    return Pattern(values, pixels)


def picture(*, stamped: bool) -> Image.Image:
    image = Image.new("RGB", (120, 120), (90, 140, 200))
    if stamped:
        image.paste((250, 0, 0), (0, 0, 18, 18))
    return image


def by_sight(mdlm: Mdlm, *shapes: str) -> Detector:
    """A detector that knows one pattern; states of the given shapes are looked at, and silent."""
    width = len(mdlm.mask_embedding)
    directions, offsets = torch.zeros(len(shapes), width), torch.zeros(len(shapes))
    facts = {"shapes": list(shapes)}
    return Detector(torch.zeros(width), directions, offsets, 8, 8, facts, (corner(),))


def defended(mdlm: Mdlm, inputs: Inputs) -> Defended:
    (found,) = defend(mdlm, [inputs], FAST, MASKING)
    return found


def defended_without_detector(
    mdlm: Mdlm, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> Defended:
    with monkeypatch.context() as patch:
        patch.setattr(mdlm, "detector", None)
        return defended(mdlm, inputs)


def test_a_known_pattern_is_masked_where_it_lies(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = mdlm.prepare([Message("user", (picture(stamped=True), QUESTION))])
    monkeypatch.setattr(mdlm, "detector", by_sight(mdlm))
    found = defended(mdlm, inputs)
    assert found.detection == Detection(1.0, None, pattern=True)
    touched = corner().cells((10, 10))
    expected = PatchSite(mdlm, [inputs]).filled(0, {0: touched})
    without = defended_without_detector(mdlm, expected, monkeypatch)
    assert torch.equal(found.prompt.embeds, without.prompt.embeds)
    assert bool(without.masked.any())
    assert torch.equal(found.masked, without.masked | touched.flatten())


def test_at_level_token_it_is_filled_in_the_pixels_and_its_tokens_count_as_masked(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = mdlm.prepare([Message("user", (picture(stamped=True), QUESTION))])
    masking = MaskingConfig(level="token", ranker="random", ratio=0.1)
    filled = PatchSite(mdlm, [inputs]).filled(0, {0: corner().cells((10, 10))})
    (without,) = defend(mdlm, [filled], FAST, masking)
    monkeypatch.setattr(mdlm, "detector", by_sight(mdlm))
    (found,) = defend(mdlm, [inputs], FAST, masking)
    assert found.detection == Detection(1.0, None, pattern=True)
    assert torch.equal(found.prompt.embeds, without.prompt.embeds)
    assert bool((found.masked & ~without.masked).any())
    assert not bool((without.masked & ~found.masked).any())


def test_an_image_without_it_keeps_the_rankers_mask(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = mdlm.prepare([Message("user", (picture(stamped=False), QUESTION))])
    without = defended(mdlm, inputs)
    monkeypatch.setattr(mdlm, "detector", by_sight(mdlm))
    found = defended(mdlm, inputs)
    assert found.detection is None
    assert torch.equal(found.masked, without.masked)
    monkeypatch.setattr(mdlm, "detector", by_sight(mdlm, shape_of(mdlm, inputs)))
    assert defended(mdlm, inputs).detection == Detection(0.0, 0.0)


def test_of_several_images_the_one_that_shows_it_is_masked(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row had two images: states are not looked at, patterns are. The ranker masks the rest."""
    images = (picture(stamped=False), picture(stamped=True))
    inputs = mdlm.prepare([Message("user", (*images, QUESTION))])
    monkeypatch.setattr(mdlm, "detector", by_sight(mdlm))
    found = defended(mdlm, inputs)
    assert found.detection == Detection(1.0, None, pattern=True)
    touched = corner().cells((5, 5))
    expected = PatchSite(mdlm, [inputs]).filled(0, {1: touched})
    without = defended_without_detector(mdlm, expected, monkeypatch)
    assert torch.equal(found.planes[0].masked, without.planes[0].masked)
    assert bool(found.planes[0].masked.any())
    assert torch.equal(found.planes[1].masked > 0, (without.planes[1].masked > 0) | touched)


def test_what_is_still_detected_is_searched_for_the_rest(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = mdlm.prepare([Message("user", (picture(stamped=True), QUESTION))])
    monkeypatch.setattr(mdlm, "detector", by_sight(mdlm, shape_of(mdlm, inputs)))
    plane = torch.zeros(10, 10, dtype=torch.bool)
    plane[9, 9] = True

    def loud(_: Mdlm, prompts: Sequence[Prompt], __: Detector) -> list[float]:
        return [0.9] * len(prompts)

    def rest(mdlm: Mdlm, inputs: Inputs, *_: object) -> Found:
        assert inputs.images[0].image.getpixel((0, 0)) != (250, 0, 0)
        return Found(mdlm.embed(inputs), {0: plane}, (), 0.1)

    monkeypatch.setattr(guard_module, "detected", loud)
    monkeypatch.setattr(guard_module, "search", rest)
    found = defended(mdlm, inputs)
    assert found.detection == Detection(1.0, 0.1, pattern=True)
    masked = found.planes[0].masked > 0
    assert torch.equal(masked, corner().cells((10, 10)) | plane)
    assert torch.equal(
        found.prompt.embeds,
        mdlm.embed(PatchSite(mdlm, [inputs]).filled(0, {0: corner().cells((10, 10))})).embeds,
    )


@pytest.mark.parametrize(
    ("detection", "token_ids", "expected"),
    [
        (Detection(0.9, None, payload=frozenset({7})), [3, 7], True),
        (Detection(0.9, 0.1, payload=frozenset({7})), [3, 4], False),
        (Detection(0.1, 0.1, payload=frozenset({7})), [3, 7], False),
        (Detection(0.9, 0.4, suspicious=True), [], True),
    ],
    ids=["payload", "another answer", "not detected", "not silenced"],
)
def test_an_answer_is_doubted(detection: Detection, token_ids: list[int], expected: bool) -> None:
    assert detection.doubts(token_ids) is expected


PHRASE = "I watched this 3D movie."


def by_word(mdlm: Mdlm) -> Detector:
    """A detector that knows a phrase and looks at no states."""
    width = len(mdlm.mask_embedding)
    facts = {"groups": [{"phrase": PHRASE}]}
    pattern = corner()
    return Detector(
        torch.zeros(width), torch.zeros(0, width), torch.zeros(0), 8, 8, facts, (pattern,)
    )


@pytest.mark.parametrize("stamped", [False, True])
def test_a_known_phrase_is_left_out(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch, stamped: bool
) -> None:
    image = picture(stamped=stamped)
    monkeypatch.setattr(mdlm, "detector", by_word(mdlm))
    found = defended(mdlm, mdlm.prepare([Message("user", (image, f"{QUESTION} {PHRASE}"))]))
    assert found.detection == Detection(1.0, None, pattern=stamped, left_out=PHRASE)
    plain = mdlm.prepare([Message("user", (image, QUESTION))])
    cells = {0: corner().cells((10, 10))} if stamped else {}
    expected = PatchSite(mdlm, [plain]).filled(0, cells)
    without = defended_without_detector(mdlm, expected, monkeypatch)
    assert torch.equal(found.prompt.embeds, without.prompt.embeds)
    assert bool(without.masked.any())


def test_a_question_that_is_nothing_but_a_phrase_stays(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = mdlm.prepare([Message("user", (picture(stamped=False), PHRASE))])
    without = defended(mdlm, inputs)
    monkeypatch.setattr(mdlm, "detector", by_word(mdlm))
    found = defended(mdlm, inputs)
    assert found.detection is None
    assert torch.equal(found.masked, without.masked)
