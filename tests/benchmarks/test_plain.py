"""The plain path gives what was published, and what the product's exact path gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.middle import SMALL_TEXT, middle_mdlm
from benchmarks.plain import generate, official_scores, plain_answer, plain_purify, top_positions
from benchmarks.plain.forward import all_logits, embed_ids, encode
from benchmarks.plain.saliency import mask_visual
from benchmarks.speed_settings import PAPER_MASKING as PAPER
from purifier import GenerationConfig, MaskingConfig, answer_inputs, load_mdlm
from purifier.answer import user_messages
from purifier.data.llava import read_llava
from purifier.errors import InvalidSetting
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.demo_model import TINY_VISION
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.purify import PRESETS, Purifier
from tests.support.disp_cases import load_case, relative_error
from tests.support.golden import golden_folder, golden_mdlm, read_case


@pytest.fixture(scope="module")
def tiny() -> LladaV:
    """Random, of two layers, and not of one word alone."""
    return middle_mdlm(vision=TINY_VISION, text=SMALL_TEXT, vocabulary=1000)


@pytest.fixture(scope="module")
def demo() -> LladaV:
    mdlm = load_mdlm(checkpoint_path("insertion"))
    assert isinstance(mdlm, LladaV)
    return mdlm


def asked(mdlm: LladaV, seed: int = 0) -> Inputs:
    noise = torch.randint(0, 256, (50, 70, 3), generator=torch.Generator().manual_seed(seed))
    picture = Image.fromarray(noise.to(torch.uint8).numpy())
    return mdlm.prepare(user_messages(picture, "What is this?"))


@pytest.mark.parametrize("name", ["stop", "suffix", "mask_predicted"])
def test_the_published_generation(name: str) -> None:
    case = read_case("llada_v", f"generate_{name}")
    mdlm = golden_mdlm(
        aspect_ratio=case.get("image_aspect_ratio"),
        merge_type=case.get("mm_patch_merge_type"),
        mask=case["mask_id"],
        table=case["stub_tokenizer_table"] or {},
    )
    image = mdlm.prepare_image(Image.open(golden_folder("llada_v") / case["image"]))
    prompt = encode(mdlm, Inputs(torch.tensor(case["input_ids"]), (image,)))
    official = dict(case["generate_kwargs"])
    official.pop("mask_id", None)
    suffix = official.pop("generation_suffix", None)
    stop = tuple(official.pop("stopping_criteria", ()))
    config = GenerationConfig(stop=stop, suffix=suffix, **official)
    before: list[list[int]] = []
    made = generate(mdlm, prompt, config, see=before.append)
    behind = mdlm.encode_text(suffix) if suffix else []
    assert [ids + behind for ids in before] == case["state_before_each_forward"]
    assert made.token_ids + behind == case["output_ids"]
    assert (made.steps, made.finished) == (case["n_forward_calls"], True)


def test_the_published_masked_answer() -> None:
    """With a stop sequence, where DiSP's loop goes another way than plain generation."""
    case = load_case("stop")
    masking = case.masking("m6k5")
    prompt = encode(case.mdlm, case.inputs)
    scores = official_scores(case.mdlm, prompt, case.generation, masking)
    assert relative_error(scores, case.tensors["m6k5.scores"]) < 1e-4
    recorded = case.record["variants"]["m6k5"]["runs"]
    for ratio in (0.0, 0.3):
        chosen = top_positions(scores, ratio)
        expected = case.tensors.get(f"m6k5.masked_{ratio}", torch.zeros(0))
        assert set((chosen + case.start).tolist()) == set(expected.tolist())
        before: list[list[int]] = []
        hidden = mask_visual(case.mdlm, prompt, chosen)
        made = generate(case.mdlm, hidden, case.generation, masked=True, see=before.append)
        assert before == recorded[str(ratio)]["state_before_each_forward"]
        assert made.token_ids == recorded[str(ratio)]["output_ids"]


@pytest.mark.parametrize("block", [4, 12])
@pytest.mark.parametrize("steps", [12, 6])
def test_the_exact_path_of_a_random_model(tiny: LladaV, block: int, steps: int) -> None:
    generation = GenerationConfig(gen_length=12, block_length=block, steps=steps)
    for seed in range(3):
        inputs = asked(tiny, seed)
        for masking in (None, replace(PAPER, seed=seed)):
            plain = plain_answer(tiny, inputs, generation, masking)
            exact = answer_inputs(tiny, inputs, generation=generation, masking=masking)
            assert plain.token_ids == exact.token_ids
            assert plain.steps == exact.steps == steps
            assert plain.masked == (0 if exact.masked is None else int(exact.masked.sum()))
            assert len(set(plain.token_ids)) > 1


def test_the_exact_path_of_the_demo_model(demo: LladaV) -> None:
    """Masked answers without a stop: behind one, the published loop fills the block first."""
    test_set = read_test_set(DATA_FOLDER, limit=2)
    for case in test_set.cases:
        for trigger in (None, test_set.trigger):
            inputs = demo.prepare(case.messages(trigger))
            for masking in (None, PAPER):
                stop = test_set.generation.stop if masking is None else ()
                generation = replace(test_set.generation, gen_length=12, stop=stop)
                plain = plain_answer(demo, inputs, generation, masking)
                exact = answer_inputs(demo, inputs, generation=generation, masking=masking)
                assert plain.token_ids == exact.token_ids
                assert plain.text


def test_the_bulk_purification_gives_the_same_answers(demo: LladaV) -> None:
    images = DATA_FOLDER / "train" / "images"
    samples = read_llava(DATA_FOLDER / "train" / "insertion.json")[:4]
    config = replace(PRESETS["paper"], generation=GenerationConfig(gen_length=12, stop=()))
    rows = Purifier(demo, config, images).purify(samples)
    plain = list(plain_purify(demo, samples, images, config))
    assert plain == [row.answers and row.answers[0] for row in rows]
    assert len(set(plain)) > 1


def test_a_limit_leaves_the_loop(tiny: LladaV) -> None:
    generation = GenerationConfig(gen_length=8)
    whole = plain_answer(tiny, asked(tiny), generation)
    part = plain_answer(tiny, asked(tiny), generation, limit=3)
    assert (whole.steps, whole.finished, part.steps, part.finished) == (8, True, 3, False)
    mask = tiny.tokens.mask
    committed = list(zip(part.token_ids, whole.token_ids, strict=True))
    assert sum(token != mask for token, _ in committed) == 3
    assert all(token in (mask, final) for token, final in committed)


def test_every_position_goes_through_the_head(tiny: LladaV) -> None:
    prompt = encode(tiny, asked(tiny))
    logits = all_logits(tiny, prompt.embeds)
    assert logits.shape == (1, prompt.embeds.shape[1], tiny.vocab_size)
    assert torch.equal(embed_ids(tiny, [5, 7]), tiny.token_embeddings(torch.tensor([5, 7])))


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"guidance_scale": 1.0}, {"remasking": "entropy"}]
)
def test_settings_that_are_not_written_out(tiny: LladaV, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="temperature 0"):
        plain_answer(tiny, asked(tiny), replace(GenerationConfig(gen_length=4), **settings))
    with pytest.raises(InvalidSetting, match="level token"):
        plain_answer(tiny, asked(tiny), GenerationConfig(gen_length=4), MaskingConfig())
