"""The whole way of a request: what an answer holds, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier import (
    GenerationConfig,
    MaskingConfig,
    PromptTooLong,
    answer,
    answer_batch,
    load_mdlm,
)
from purifier.answer import begin_batch, finish, user_messages
from purifier.denoise import denoising_step
from purifier.mdlm.llada_v import LladaV
from tests.support.legible import legible

GENERATION = GenerationConfig(gen_length=6)
LEVELS = ("token", "patch")


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> LladaV:
    return legible(load_mdlm(tiny_checkpoint))


def pictures(count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(11)
    sizes = ((64, 64), (70, 40), (40, 52))
    return [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=generator).byte().numpy())
        for w, h in sizes[:count]
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_undefended(mdlm: LladaV, count: int) -> None:
    found = answer(mdlm, pictures(count), "What is this?", generation=GENERATION)
    assert found.text == mdlm.decode(found.token_ids).strip()
    assert found.saliency is found.masked is None
    assert (found.n_units, found.planes) == (0, ())
    assert found.finish_reason in ("stop", "length")
    assert 0 < found.n_visual_tokens < found.prompt_tokens
    assert (found.timings["saliency"], found.timings["mask"]) == (0.0, 0.0)
    assert found.timings["denoise"] > 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2])
def test_defended(mdlm: LladaV, level: str, ratio: float, count: int) -> None:
    images = pictures(count)
    masking = MaskingConfig(level=level, ratio=ratio, ranker="fisher", probes=2)  # type: ignore[arg-type]
    found = answer(mdlm, images, "What is this?", generation=GENERATION, masking=masking)
    plain = answer(mdlm, images, "What is this?", generation=GENERATION)
    assert found.saliency is not None
    assert found.masked is not None
    assert len(found.saliency) == len(found.masked) == found.n_units > 0
    assert len(found.planes) == count
    assert bool(found.masked.any()) == (ratio > 0)
    assert bool(found.masked.all()) == (ratio == 1)
    assert found.n_visual_tokens == plain.n_visual_tokens
    if level == "token":
        assert found.n_units == found.n_visual_tokens
    if ratio == 0:
        assert found.token_ids == plain.token_ids


@pytest.mark.parametrize("masking", [None, MaskingConfig(), MaskingConfig(level="token")])
def test_no_image(mdlm: LladaV, masking: MaskingConfig | None) -> None:
    found = answer(mdlm, None, "What is this?", generation=GENERATION, masking=masking)
    assert found.n_visual_tokens == found.n_units == 0
    undefended = answer(mdlm, [], "What is this?", generation=GENERATION)
    assert found.token_ids == undefended.token_ids


def test_no_requests(mdlm: LladaV) -> None:
    assert answer_batch(mdlm, []) == answer_batch(mdlm, [], masking=MaskingConfig()) == []


@pytest.mark.parametrize(
    ("masking", "passes"),
    [
        (None, 1),
        (MaskingConfig(level="token"), 1),
        (MaskingConfig(level="patch", ranker="fisher"), 2),
    ],
)
@pytest.mark.parametrize("steps", [1, 6])
def test_the_tower_runs_once_and_once_more_for_a_filled_image(
    mdlm: LladaV, masking: MaskingConfig | None, passes: int, steps: int
) -> None:
    calls: list[None] = []
    handle = mdlm.modules.vision_tower.encoder.register_forward_hook(lambda *_: calls.append(None))
    try:
        generation = GenerationConfig(gen_length=6, steps=steps)
        answer(mdlm, pictures(1)[0], "What is this?", generation=generation, masking=masking)
    finally:
        handle.remove()
    assert len(calls) == passes


def test_logits_are_asked_for_at_the_block_alone(
    mdlm: LladaV, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[int]] = []
    forward = mdlm.logits

    def recorded(embeds, positions, lengths=None):  # type: ignore[no-untyped-def]
        asked.append(positions[0].tolist())
        return forward(embeds, positions, lengths)

    monkeypatch.setattr(mdlm, "logits", recorded)
    generation = GenerationConfig(gen_length=4, block_length=2, stop=(), suffix=" or not.")
    found = answer(mdlm, pictures(1)[0], "What is this?", generation=generation)
    first = found.prompt_tokens
    assert asked[0] == [first, first + 1]
    assert asked[2] == [first + 2, first + 3]
    assert [len(positions) for positions in asked] == [2, 1, 2, 1]


def test_the_suffix_counts_into_the_length(mdlm: LladaV) -> None:
    room = mdlm.max_length - answer(mdlm, None, "a", generation=GENERATION).prompt_tokens
    suffix = " background."
    short = room - len(mdlm.encode_text(suffix))
    fits = GenerationConfig(gen_length=short, steps=1, suffix=suffix)
    assert answer(mdlm, None, "a", generation=fits).steps == 1
    too_long = GenerationConfig(gen_length=short + 1, steps=1, suffix=suffix)
    with pytest.raises(PromptTooLong, match=f"response of {room + 1} tokens") as caught:
        answer(mdlm, None, "a", generation=too_long)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "generation",
    [
        GenerationConfig(gen_length=4, guidance_scale=50.0),
        GenerationConfig(gen_length=4, temperature=10.0, guidance_scale=50.0),
        GenerationConfig(gen_length=4, remasking="entropy", suffix=" background."),
    ],
    ids=str,
)
def test_bfloat16_at_extreme_settings(
    tiny_checkpoint: Path, level: str, generation: GenerationConfig
) -> None:
    mdlm = load_mdlm(tiny_checkpoint, dtype="bfloat16")
    masking = MaskingConfig(level=level, probes=2)  # type: ignore[arg-type]
    found = answer(mdlm, pictures(2), "What is this?", generation=generation, masking=masking)
    again = answer(mdlm, pictures(2), "What is this?", generation=generation, masking=masking)
    assert found.token_ids == again.token_ids
    assert not set(found.token_ids) & set(mdlm.tokens.suppressed)


@pytest.mark.parametrize("masking", [None, MaskingConfig(ranker="attention", ratio=0.3)])
def test_answers_in_parts_are_those_of_the_whole_way(
    mdlm: LladaV, masking: MaskingConfig | None
) -> None:
    requests = [
        mdlm.prepare(user_messages(image, "What is this?"))
        for image in ([], *([image] for image in pictures(2)))
    ]
    expected = answer_batch(mdlm, requests, generation=GENERATION, masking=masking)
    first, *late = begin_batch(mdlm, requests, GENERATION, masking)
    denoising_step(mdlm, [first.state])
    assert finish(mdlm, first).steps == 1
    begun = [first, *late]
    while running := [item.state for item in begun if not item.state.done]:
        denoising_step(mdlm, running)
    for item, whole in zip(begun, expected, strict=True):
        found = finish(mdlm, item)
        assert found.token_ids == whole.token_ids
        assert (found.masked is None) == (whole.masked is None) == (masking is None)
        assert (found.text, found.steps) == (whole.text, whole.steps)
        assert found.timings["denoise"] == 0.0 < whole.timings["denoise"]
