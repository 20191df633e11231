"""Every case of the published fast variant (dLLM-Cache), step by step."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from purifier.denoise import DenoisingState, GenerationConfig, denoising_step
from purifier.denoise.cache import ResponseFeatures
from purifier.denoise.passes import candidate_logits
from purifier.mdlm.base import Inputs
from tests.support.golden import golden_folder, golden_mdlm, read_case

CASES = ["demo_settings", "interval_1_1", "interval_only", "mixed", "one_replacement"]


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name: str) -> None:
    case = read_case("llada_v", f"cache_{name}")
    mdlm = golden_mdlm(
        aspect_ratio=case["image_aspect_ratio"],
        merge_type=case["mm_patch_merge_type"],
        mask=case["mask_id"],
        table={},
    )
    image = mdlm.prepare_image(Image.open(golden_folder("llada_v") / case["image"]))
    prompt = mdlm.embed(Inputs(torch.tensor(case["input_ids"]), (image,)))
    cache = case["cache"]
    config = GenerationConfig(
        stop=(),
        cache="dllm",
        prompt_interval=cache["prompt_interval_steps"],
        response_interval=cache["gen_interval_steps"],
        transfer_ratio=cache["transfer_ratio"],
        **case["generate_kwargs"],
    )
    state = DenoisingState(mdlm, prompt, config)
    features = state.cache
    assert isinstance(features, ResponseFeatures)
    recorded = {
        (each["forward"], each["layer"]): each["index"] for each in case["transfer_indices"]
    }
    asked = []

    def choose(layer: int, similarity: Tensor, count: int) -> Tensor:
        """The recorded choice: unchanged positions tie, so that rounding decides otherwise."""
        index = recorded[features.calls + 1, layer]
        assert len(index) == count
        asked.append((features.calls + 1, layer))
        if name == "one_replacement":
            assert similarity.argmin().tolist() == index[0]
        return torch.tensor(index)

    features.stored[0].choose = choose
    stored = load_file(golden_folder("llada_v") / f"cache_{name}.safetensors")
    states_before = []
    while not state.done:
        states_before.append(state.ids)
        key = f"raw_logits_generated_region_forward_{state.steps_run + 1}"
        state.ids = list(state.ids)
        if key in stored and state.steps_run == 0:
            logits = candidate_logits(mdlm, [state], [state.candidates()])[0]
            torch.testing.assert_close(
                logits, stored[key][0, state.candidates()], atol=1e-4, rtol=0
            )
        denoising_step(mdlm, [state])
    assert states_before == case["state_before_each_forward"]
    assert state.token_ids == case["output_ids"]
    assert state.steps_run == case["n_forward_calls"]
    assert set(asked) == set(recorded)
