"""A detector as a file of a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from purifier.errors import CheckpointError
from purifier.mdlm.detector import DETECTOR_FILE, Detector, read_detector
from purifier.mdlm.export import export_merged
from purifier.mdlm.patterns import SIDE, Pattern
from purifier.mdlm.registry import load_mdlm

WIDTH = 6


def detector(width: int = WIDTH) -> Detector:
    generator = torch.Generator().manual_seed(1)
    return Detector(
        mean=torch.randn(width, generator=generator),
        directions=torch.randn(2, width, generator=generator),
        offsets=torch.tensor([0.1, -0.2]),
        length=32,
        positions=8,
        facts={"groups": [{"phrase": "as ever", "payload": [4, 7]}, {"payload": [7, 9]}, {}]},
    )


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    made = detector()
    made.save(tmp_path)
    found = read_detector(tmp_path, WIDTH)
    assert found is not None
    states = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    assert torch.equal(found.scores(states), made.scores(states))
    assert (found.length, found.positions) == (32, 8)
    assert found.facts["groups"] == made.facts["groups"]
    assert found.payload == {4, 7, 9}
    assert sorted(path.name for path in tmp_path.iterdir()) == [DETECTOR_FILE]


def pattern() -> Pattern:
    pixels = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    pixels[3:9, 5:7] = True
    return Pattern(torch.arange(3).to(torch.uint8).expand(SIDE, SIDE, 3).clone(), pixels)


def test_patterns_are_saved_with_it_and_may_be_all_there_is(tmp_path: Path) -> None:
    full = replace(detector(), patterns=(pattern(), pattern()))
    alone = replace(full, directions=torch.zeros(0, WIDTH), offsets=torch.zeros(0))
    for made in (full, alone):
        made.save(tmp_path)
        found = read_detector(tmp_path, WIDTH)
        assert found is not None
        assert len(found.patterns) == 2
        assert torch.equal(found.patterns[1].values, pattern().values)
        assert torch.equal(found.patterns[1].pixels, pattern().pixels)
    assert alone.scores(torch.ones(3, WIDTH)).tolist() == [0.0] * 3


def test_most_of_a_payload_is_more_than_a_word_of_it() -> None:
    """The groups have the payloads {4, 7} and {7, 9}."""
    made = detector()
    assert [made.repeats(ids) for ids in ([4], [4, 7, 1], [4, 9], [9, 7])] == [
        *(False, True, False, True)
    ]
    assert not replace(made, facts={"groups": [{"payload": [4]}]}).repeats([4])


def test_a_phrase_alone_makes_a_detector(tmp_path: Path) -> None:
    alone = replace(detector(), directions=torch.zeros(0, WIDTH), offsets=torch.zeros(0))
    alone.save(tmp_path)
    found = read_detector(tmp_path, WIDTH)
    assert found is not None
    assert found.phrases == ("as ever",)


def test_a_score_is_the_largest_of_any_direction() -> None:
    made = detector()
    alone = [
        replace(made, directions=made.directions[n : n + 1], offsets=made.offsets[n : n + 1])
        for n in (0, 1)
    ]
    states = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(3))
    expected = torch.maximum(*(each.scores(states) for each in alone))
    assert torch.allclose(made.scores(states), expected)


def test_no_file_is_no_detector(tmp_path: Path) -> None:
    assert read_detector(tmp_path, WIDTH) is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _other_format(path: Path) -> None:
    _rewritten(path, facts={"format": "disp-detector-9", "length": 32, "positions": 8})


def _endless(path: Path) -> None:
    _rewritten(path, offsets=torch.tensor([float("inf"), 0.0]))


def _half(path: Path) -> None:
    _rewritten(path, mean=torch.zeros(WIDTH, dtype=torch.float16))


def _no_length(path: Path) -> None:
    _rewritten(path, facts={"format": "disp-detector-1", "length": True, "positions": 1})


def _too_long(path: Path) -> None:
    _rewritten(path, facts={"format": "disp-detector-1", "length": 10**9, "positions": 1})


def _rewritten(
    path: Path, *, facts: dict[str, object] | None = None, **given: torch.Tensor
) -> None:
    made = detector()
    tensors = {"mean": made.mean, "directions": made.directions, "offsets": made.offsets, **given}
    facts = facts or {"format": "disp-detector-1", "length": 32, "positions": 8}
    save_file(tensors, path, metadata={"detector": json.dumps(facts)})


def _no_direction(path: Path) -> None:
    _rewritten(path, directions=torch.zeros(0, WIDTH), offsets=torch.zeros(0))


def _scalar(path: Path) -> None:
    _rewritten(path, offsets=torch.tensor(0.5))


def _groups_of_numbers(path: Path) -> None:
    good = {"format": "disp-detector-1", "length": 32, "positions": 8}
    _rewritten(path, facts={**good, "groups": [5]})


def _payload_of_words(path: Path) -> None:
    good = {"format": "disp-detector-1", "length": 32, "positions": 8}
    _rewritten(path, facts={**good, "groups": [{"payload": ["boat"]}]})


def _shapes_of_nothing(path: Path) -> None:
    good = {"format": "disp-detector-1", "length": 32, "positions": 8}
    _rewritten(path, facts={**good, "shapes": 5})


def _no_pixels(path: Path) -> None:
    _rewritten(path, patterns=torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8))


def _empty_pattern(path: Path) -> None:
    values = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    _rewritten(path, patterns=values, pattern_pixels=torch.zeros(1, SIDE, SIDE, dtype=torch.bool))


def _small_pattern(path: Path) -> None:
    values = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    _rewritten(path, patterns=values, pattern_pixels=torch.ones(1, 8, 8, dtype=torch.bool))


HARMS = (
    *(_cut, _other_format, _endless, _half, _no_length, _too_long, _no_direction, _scalar),
    *(_groups_of_numbers, _payload_of_words, _shapes_of_nothing),
    *(_no_pixels, _empty_pattern, _small_pattern),
)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_refused(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    detector().save(tmp_path)
    harm(tmp_path / DETECTOR_FILE)
    with pytest.raises(CheckpointError, match="damaged or of another version"):
        read_detector(tmp_path, WIDTH)


def test_the_detector_of_another_model_is_refused(tmp_path: Path) -> None:
    detector().save(tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        read_detector(tmp_path, WIDTH + 1)


def test_a_checkpoint_is_loaded_with_its_detector(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "guarded"
    shutil.copytree(tiny_checkpoint, folder)
    width = len(load_mdlm(tiny_checkpoint).mask_embedding)
    assert load_mdlm(tiny_checkpoint).detector is None
    detector(width).save(folder)
    assert load_mdlm(folder).detector is not None
    detector(width + 2).save(folder)
    with pytest.raises(CheckpointError, match="another model"):
        load_mdlm(folder)


def test_an_export_keeps_the_detector(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "guarded"))
    made = detector(len(load_mdlm(tiny_checkpoint).mask_embedding))
    made.save(folder)
    export_merged(folder, tmp_path / "out")
    found = load_mdlm(tmp_path / "out").detector
    assert found is not None
    assert torch.equal(found.directions, made.directions)
