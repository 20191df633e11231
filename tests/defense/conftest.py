"""A very small LLaDA-V with random weights, and requests for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, SiglipVisionConfig

from purifier.defense.config import PATCH_RANKERS
from purifier.defense.rankers import RANKERS
from purifier.mdlm.base import IMAGE_PLACEHOLDER, Inputs, SpecialTokens
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.llada_v.config import LladaVConfig
from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.seeding import seeded

MakeInputs = Callable[..., Inputs]

LEVELS = ("token", "patch")
TOKEN_RANKERS = sorted(set(RANKERS) - PATCH_RANKERS)
COMBINATIONS = [
    *(("token", ranker) for ranker in TOKEN_RANKERS),
    *(("patch", ranker) for ranker in sorted(RANKERS)),
]
"""Every level with every ranker that works at it."""

TOKENS = SpecialTokens(mask=90, bos=91, eos=92, pad=92, start_header=93, end_header=94, eot=95)


def small_config(aspect_ratio: str = "anyres_max_4") -> LladaVConfig:
    """Views of 20 pixels in patches of 5; tilings of up to 2 x 2 views."""
    text = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        use_cache=False,
    )
    text.is_causal = False
    vision = SiglipVisionConfig(
        image_size=20,
        patch_size=5,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vision_use_head=False,
    )
    return LladaVConfig(
        text=text,
        vision=vision,
        vision_folder=None,
        merge_type="spatial_unpad",
        aspect_ratio=aspect_ratio,
        pinpoints=((20, 20), (20, 40), (40, 20), (40, 40)),
        max_length=512,
    )


@pytest.fixture(scope="session")
def mdlm() -> LladaV:
    """Weights large enough that answers depend on the image."""
    config = small_config()
    # Of a dozen seeds the one whose answers hang on every image the most: the tests of two-stage
    # need windows whose score stands out.
    with seeded(0):
        modules = LladaVModules(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for parameter in modules.parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    modules.image_newline.copy_(torch.randn(32, generator=generator))
    modules.language_model.embed_tokens.weight.mul_(5.0)
    modules.lm_head.weight.mul_(3.0)
    return LladaV(config, modules, None, TOKENS)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random pixels, so that every patch differs."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="session")
def make_inputs(mdlm: LladaV) -> MakeInputs:
    """A request: `n_text` ids around an image placeholder for every image."""

    def make(images: Sequence[Image.Image], n_text: int = 6, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 90, (n_text,), generator=generator).tolist()
        for number in range(len(images)):
            ids.insert(2 + 2 * number, IMAGE_PLACEHOLDER)
        return Inputs(
            torch.tensor(ids),
            tuple(mdlm.prepare_image(image, n_images=len(images)) for image in images),
        )

    return make


@pytest.fixture(scope="session")
def requests(make_inputs: MakeInputs) -> list[Inputs]:
    """Requests of different lengths, one with two images and one with none."""
    return [
        make_inputs([picture(38, 30)]),
        make_inputs([picture(20, 20, 1), picture(31, 25, 2)], n_text=9, seed=1),
        make_inputs([], n_text=5, seed=2),
        make_inputs([picture(20, 52, 3)], n_text=7, seed=3),
    ]
