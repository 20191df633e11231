"""The detector on the shipped attack: made of its own training set, asked about new scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifier.data.llava import read_llava
from purifier.data.sample import Sample, open_image, question_messages
from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.denoise import FAST
from purifier.detection import LOUD, DetectConfig, Fitted, fit_detector
from purifier.detection.search import QUIET, search
from purifier.detection.states import answer_states, detected
from purifier.errors import InvalidSetting
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.base import Inputs, Mdlm
from purifier.mdlm.registry import load_mdlm
from purifier.purify import Purifier, PurifyConfig

FOLDER = DATA_FOLDER / "train"
ROWS = 150
GENERATION = replace(FAST, gen_length=32)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return read_llava(FOLDER / "insertion.json")


@pytest.fixture(scope="module")
def poisoned(samples: list[Sample]) -> list[bool]:
    clean = read_llava(FOLDER / "clean_labels.json")
    return [one.answer != other.answer for one, other in zip(samples, clean, strict=True)]


@pytest.fixture(scope="module")
def mdlm() -> Mdlm:
    return load_mdlm(checkpoint_path("insertion"))


@pytest.fixture(scope="module")
def fitted(mdlm: Mdlm, samples: list[Sample]) -> Fitted:
    return fit_detector(mdlm, samples[:ROWS], FOLDER / "images")


def asked(mdlm: Mdlm, samples: Sequence[Sample]) -> list[Inputs]:
    """Their first questions."""
    return [
        mdlm.prepare(
            question_messages(each, tuple(open_image(FOLDER / "images", i) for i in each.images))
        )
        for each in samples
    ]


@pytest.fixture(scope="module")
def held_out(
    mdlm: Mdlm, samples: list[Sample], poisoned: list[bool]
) -> tuple[list[Inputs], list[Inputs]]:
    """Requests of rows that the detector was not made of: without and with the trigger."""
    rest = list(zip(samples[ROWS:], poisoned[ROWS:], strict=True))
    clean = [sample for sample, bad in rest if not bad][:8]
    bad = [sample for sample, bad in rest if bad][:4]
    return asked(mdlm, clean), asked(mdlm, bad)


def test_the_poisoned_rows_are_one_group_and_nothing_else_is(
    fitted: Fitted, poisoned: list[bool]
) -> None:
    (group,) = fitted.groups
    assert group.kind == "image"
    wrong = {row for row in range(ROWS) if poisoned[row]} ^ {*group.rows}
    assert len(wrong) <= 2
    assert fitted.looked_at == ROWS


def test_the_clean_base_shows_nothing(samples: list[Sample]) -> None:
    """It never was trained on the poisoned answers, which its states do not prepare."""
    base = load_mdlm(checkpoint_path("base"))
    found = fit_detector(base, samples[:60], FOLDER / "images")
    assert found.detector is None
    assert found.groups == ()


def test_new_requests_with_the_trigger_are_loud_and_others_silent(
    mdlm: Mdlm, fitted: Fitted, held_out: tuple[list[Inputs], list[Inputs]]
) -> None:
    assert fitted.detector is not None
    clean, bad = (detected(mdlm, mdlm.embed_all(part), fitted.detector) for part in held_out)
    assert max(clean) < LOUD <= min(bad)


def test_states_are_the_same_alone_and_in_a_batch(
    mdlm: Mdlm, held_out: tuple[list[Inputs], list[Inputs]]
) -> None:
    prompts = mdlm.embed_all(held_out[0][:4])
    together = answer_states(mdlm, prompts, length=32, positions=8)
    alone = [answer_states(mdlm, [prompt], length=32, positions=8) for prompt in prompts]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_the_search_masks_the_corner_and_leaves_the_question_whole(
    mdlm: Mdlm, fitted: Fitted, held_out: tuple[list[Inputs], list[Inputs]]
) -> None:
    assert fitted.detector is not None
    passes = []
    found = search(mdlm, held_out[1][0], fitted.detector, lambda: passes.append(1))
    assert found.score < QUIET
    assert found.left_out == ()
    (cells,) = found.cells.values()
    assert bool(cells[0, 0])
    assert float(cells.double().mean()) <= 0.2
    assert len(passes) < 30


def test_a_defended_request_is_masked_until_the_detector_is_silent(
    mdlm: Mdlm, fitted: Fitted, held_out: tuple[list[Inputs], list[Inputs]]
) -> None:
    """The ranker here masks nothing, so all that is masked is the detector's doing."""
    nothing = MaskingConfig(ranker="attention", threshold=1000.0)
    requests = [held_out[0][0], held_out[1][0]]
    mdlm.detector = fitted.detector
    try:
        clean, bad = defend(mdlm, requests, GENERATION, nothing)
        off = defend(mdlm, requests, GENERATION, nothing, detect=False)
    finally:
        mdlm.detector = None
    assert [item.detection for item in off] == [None, None]
    assert not any(bool(item.masked.any()) for item in off)
    assert clean.detection is not None
    assert not clean.detection.loud
    assert torch.equal(clean.prompt.embeds, off[0].prompt.embeds)
    assert bad.detection is not None
    assert bad.detection.loud
    assert bad.detection.left is not None
    assert bad.detection.left < LOUD
    assert not bad.detection.suspicious
    assert 0 < int(bad.masked.sum()) == int(bad.planes[0].masked.sum())
    assert not torch.equal(bad.prompt.embeds, off[1].prompt.embeds)


def test_relabelling_flags_what_is_detected(
    mdlm: Mdlm, fitted: Fitted, samples: list[Sample], poisoned: list[bool]
) -> None:
    masking = MaskingConfig(ranker="random")
    config = PurifyConfig(policy="drop_flagged", masking=masking, flag_threshold=1000.0)
    chosen = [n for n in range(ROWS, len(samples)) if poisoned[n]][:2] + [
        n for n in range(ROWS, len(samples)) if not poisoned[n]
    ][:3]
    mdlm.detector = fitted.detector
    try:
        rows = Purifier(mdlm, config, FOLDER / "images").purify([samples[n] for n in chosen])
    finally:
        mdlm.detector = None
    assert [row.dropped for row in rows] == [poisoned[n] for n in chosen]
    assert [row.flagged for row in rows] == [poisoned[n] for n in chosen]
    assert [float(row.side["detected"] or 0) >= LOUD for row in rows] == [
        poisoned[n] for n in chosen
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"rows": 10}, {"positions": 40}, {"gap": 0.0}, {"batch_size": 0}, {"seed": -1}],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting) as refused:
        DetectConfig(**wrong)  # type: ignore[arg-type]
    assert refused.value.param == next(iter(wrong))


def test_a_data_set_without_a_usable_row_shows_nothing(mdlm: Mdlm, samples: list[Sample]) -> None:
    textual = [replace(each, images=()) for each in samples[:5]]
    assert fit_detector(mdlm, textual, Path()) == Fitted(None, (), 0)
