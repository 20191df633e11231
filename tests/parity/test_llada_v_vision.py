"""The image path and the tower against the published LLaDA-V code."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.llada_v.images import process_image
from purifier.mdlm.llada_v.packing import pack_frames
from tests.support.golden import golden_folder, golden_mdlm, read_case

SINGLE = [
    "anyres_1x1",
    "anyres_2x2",
    "anyres_downscaled",
    "pad_flat",
    "pad_unpadtype",
    "square_flat",
]


def _open(name: str) -> Image.Image:
    return Image.open(golden_folder("llada_v") / name)


def _u8(pixels: torch.Tensor) -> np.ndarray:
    return ((pixels.numpy() * 0.5 + 0.5) * 255).round().astype(np.uint8)


def _model(case: dict[str, Any]) -> LladaV:
    return golden_mdlm(
        aspect_ratio=case["image_aspect_ratio"], merge_type=case["mm_patch_merge_type"]
    )


@pytest.mark.parametrize("name", SINGLE)
def test_pixels_are_those_of_the_published_code(name: str) -> None:
    case = read_case("llada_v", f"vision_{name}")
    mdlm = _model(case)
    image = mdlm.prepare_image(_open(case["images"][0]))
    digest = hashlib.sha256(image.pixels.numpy().tobytes()).hexdigest()
    if digest == case["pixel_float32_sha256"][0]:
        return
    # Pillow 13 resizes one tile by a few levels differently; the folder stores that variant.
    stored = np.load(golden_folder("llada_v") / f"vision_{name}_pixels.npz")
    tiles = stored["tiles_u8_0"].copy()
    tiles[0] = stored["first_tile_u8_if_pillow_13_0_0"]
    assert np.array_equal(_u8(image.pixels), tiles)


@pytest.mark.parametrize("name", SINGLE)
def test_tower_projector_and_packing(name: str) -> None:
    case = read_case("llada_v", f"vision_{name}")
    expected = load_file(golden_folder("llada_v") / f"vision_{name}.safetensors")
    mdlm = _model(case)
    image = mdlm.prepare_image(_open(case["images"][0]))
    file = golden_folder("llada_v") / f"vision_{name}_pixels.npz"
    if file.is_file():
        # The stored tiles, so that the comparison does not depend on the Pillow version.
        tiles = torch.from_numpy(np.load(file)["tiles_u8_0"]).double() * (1 / 255)
        image.pixels.copy_((tiles.float() - 0.5) / 0.5)
    patches = mdlm.patch_embeddings(image)
    tower = mdlm.modules.vision_tower.encoder(inputs_embeds=patches).last_hidden_state
    projected = mdlm.modules.mm_projector(tower)
    stored = {"tower_output": tower, "projector_output": projected}
    for kind, actual in stored.items():
        if kind in expected:
            torch.testing.assert_close(actual, expected[kind], atol=1e-4, rtol=0)
        if f"{kind}_first_tile" in expected:
            first, last = expected[f"{kind}_first_tile"], expected[f"{kind}_last_tile"]
            torch.testing.assert_close(actual[:1], first, atol=1e-4, rtol=0)
            torch.testing.assert_close(actual[-1:], last, atol=1e-4, rtol=0)
    visual = mdlm.visual_embeddings(image, patches)
    assert len(visual) == image.n_tokens == case["visual_token_count_total"]
    torch.testing.assert_close(visual, expected["visual_embeds"], atol=1e-4, rtol=0)


def test_stacked_tiles_skip_the_newline() -> None:
    # The published code packs one stacked tensor as if the merge type were flat.
    case = read_case("llada_v", "vision_pad_stacked_tensor")
    expected = load_file(golden_folder("llada_v") / "vision_pad_stacked_tensor.safetensors")
    mdlm = golden_mdlm(aspect_ratio="pad", merge_type="flat")
    image = mdlm.prepare_image(_open(case["images"][0]))
    torch.testing.assert_close(
        mdlm.visual_embeddings(image), expected["visual_embeds"], atol=1e-4, rtol=0
    )


def test_two_images_are_padded_to_one_view_each() -> None:
    case = read_case("llada_v", "vision_two_images_pad")
    expected = load_file(golden_folder("llada_v") / "vision_two_images_pad.safetensors")
    # Whatever the configured aspect mode is, several images are padded.
    mdlm = golden_mdlm(aspect_ratio="anyres_max_4", merge_type=case["mm_patch_merge_type"])
    images = tuple(mdlm.prepare_image(_open(name), n_images=2) for name in case["images"])
    for image, digest in zip(images, case["pixel_float32_sha256"], strict=True):
        assert hashlib.sha256(image.pixels.numpy().tobytes()).hexdigest() == digest
    inputs = Inputs(expected["input_ids"][0], images)
    prompt = mdlm.embed(inputs)
    assert inputs.length == len(prompt.embeds) == case["sequence_len"]
    assert [span.start for span in prompt.spans] == [14, 14 + 730 + 1]
    assert prompt.n_visual == int(prompt.visual.sum()) == case["visual_token_count_total"]
    torch.testing.assert_close(prompt.embeds, expected["inputs_embeds"][0], atol=1e-4, rtol=0)


def test_video_frames_are_halved() -> None:
    case = read_case("llada_v", "vision_video_2frames")
    expected = load_file(golden_folder("llada_v") / "vision_video_2frames.safetensors")
    mdlm = golden_mdlm(aspect_ratio="square", merge_type="flat")
    frames = [process_image(_open(name), mdlm.config) for name in case["images"]]
    pixels = torch.cat([frame.pixels for frame in frames])
    digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    assert digest == case["pixel_float32_sha256"][0]
    features = torch.cat([mdlm.encode_views(mdlm.patch_embeddings(frame)) for frame in frames])
    packed = pack_frames(features, mdlm.modules.image_newline)
    torch.testing.assert_close(packed, expected["visual_embeds"], atol=1e-4, rtol=0)
