"""Every generation case of the published LLaDA-V code, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from purifier.defense.first_step import Response, first_step_batch
from purifier.denoise import DenoisingState, GenerationConfig, denoising_step
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.seeding import seeded
from tests.support.golden import golden_folder, golden_mdlm, read_case

CASES = [
    "anyres_1x1",
    "anyres_2x2_short",
    "blocks",
    "cfg",
    "default",
    "mask_predicted",
    "more_steps_than_tokens",
    "random_remask",
    "stop",
    "suffix",
    "temperature",
    "text_only",
    "uneven",
]


class PublishedNoise:
    """Draws as the published code does: for the whole sequence, from the global generator."""

    def __init__(self, length: int) -> None:
        self._length = length

    def gumbel_uniform(self, positions: Tensor, vocab_size: int) -> Tensor:
        return torch.rand(1, self._length, vocab_size, dtype=torch.float64)[0, positions]

    def confidence(self, positions: Tensor) -> Tensor:
        return torch.rand(1, self._length)[0, positions]


def _settings(case: dict[str, Any]) -> GenerationConfig:
    official = dict(case["generate_kwargs"])
    official.pop("mask_id", None)
    return GenerationConfig(
        stop=tuple(official.pop("stopping_criteria", ())),
        suffix=official.pop("generation_suffix", None),
        guidance_scale=official.pop("cfg_scale", 0.0),
        **{"gen_length": 128, **official},
    )


def _prompt(mdlm: LladaV, case: dict[str, Any]) -> Any:
    images = []
    if case.get("image"):
        images.append(mdlm.prepare_image(Image.open(golden_folder("llada_v") / case["image"])))
    return mdlm.embed(Inputs(torch.tensor(case["input_ids"]), tuple(images)))


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name: str) -> None:
    case = read_case("llada_v", f"generate_{name}")
    mdlm = golden_mdlm(
        aspect_ratio=case.get("image_aspect_ratio"),
        merge_type=case.get("mm_patch_merge_type"),
        mask=case["mask_id"],
        table=case["stub_tokenizer_table"] or {},
    )
    prompt = _prompt(mdlm, case)
    assert len(prompt.embeds) == case["prompt_embeds_len"]
    config = _settings(case)
    state = DenoisingState(
        mdlm, prompt, config, PublishedNoise(len(prompt.embeds) + config.gen_length)
    )
    embeds = first_step_batch(mdlm, [prompt], Response.of(mdlm, config)).embeds
    first = mdlm.logits(embeds, torch.arange(len(prompt.embeds), state.length)[None])
    expected = load_file(golden_folder("llada_v") / f"generate_{name}.safetensors")
    key = next(key for key in expected if "logits" in key)
    # With guidance a second row holds the logits of the masked prompt.
    stored = expected[key].reshape(-1, first.shape[1], first.shape[2])[0]
    torch.testing.assert_close(first[0].detach(), stored, atol=1e-4, rtol=0)

    states_before = []
    # None where nothing is drawn.
    with seeded(case["seed_set_right_before_generate"] or 0):
        while not state.done:
            states_before.append(state.ids + state.suffix_ids)
            denoising_step(mdlm, [state])
    assert states_before == case["state_before_each_forward"]
    assert state.token_ids + state.suffix_ids == case["output_ids"]
    assert state.steps_run == case["n_forward_calls"]
