"""The saliency cases of the published DiSP code, loaded as requests of this package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs, Prompt, VisualSpan
from purifier.mdlm.llada_v import LladaV
from tests.support.golden import golden_folder, golden_mdlm, read_case

VARIANTS = [
    ("single_tile", "m6k5"),
    ("single_tile", "m3k10"),
    ("anyres_tiles", "m6k5"),
    ("anyres_tiles", "m3k10"),
    ("other_prompt_stamped", "m6k5"),
    ("other_prompt_stamped", "m3k10"),
    ("blocks_newline", "m6k5"),
    ("two_images", "m6k5"),
    ("stop", "m6k5"),
]


@dataclass(frozen=True)
class DispCase:
    """One recorded run.

    Attributes:
        mdlm: The tiny model, set up for the case; the text `<stop>` is its stop sequence and
            `<suffix>` its suffix.
        inputs: The request, from the stored ids and images.
        prompt: The request as the published code sees it: one contiguous visual span from the
            first placeholder on, which is displaced where there are several images.
        tensors: The recorded tensors.
        record: The recorded settings and runs.
    """

    mdlm: LladaV
    inputs: Inputs
    prompt: Prompt
    tensors: dict[str, Tensor]
    record: dict[str, Any]

    @property
    def start(self) -> int:
        start: int = self.record["visual_span"]["start"]
        return start

    @property
    def generation(self) -> GenerationConfig:
        settings = self.record["generation"]
        return GenerationConfig(
            gen_length=settings["gen_length"],
            block_length=settings["block_length"],
            steps=settings["steps"],
            stop=("<stop>",),
            suffix="<suffix>" if settings["suffix_ids"] else None,
        )

    def masking(self, variant: str, **changes: Any) -> MaskingConfig:
        settings = self.record["variants"][variant]
        config = MaskingConfig(
            level="token",
            ranker="official",
            threshold=0.0,
            probes=settings["probes"],
            top_k=settings["topk"],
            seed=self.record["seed"],
        )
        return replace(config, **changes)


def load_case(name: str) -> DispCase:
    folder = golden_folder("disp")
    record = read_case("disp", f"saliency_{name}")
    tensors = load_file(folder / f"saliency_{name}.safetensors")
    settings = record["generation"]
    mdlm = golden_mdlm(
        aspect_ratio=record["image_aspect_ratio"],
        merge_type=record["mm_patch_merge_type"],
        table={"<stop>": settings["stop_ids"][0], "<suffix>": settings["suffix_ids"] or []},
    )
    images = [Image.open(folder / path) for path in record["images"]]
    inputs = Inputs(
        tensors["input_ids"],
        tuple(mdlm.prepare_image(image, n_images=len(images)) for image in images),
    )
    prompt = mdlm.embed(inputs)
    if len(images) > 1:
        prompt = published_span(prompt, record["visual_span"])
    return DispCase(mdlm, inputs, prompt, tensors, record)


def published_span(prompt: Prompt, span: dict[str, int]) -> Prompt:
    """The prompt with the published code's idea of what is visual."""
    visual = torch.zeros_like(prompt.visual)
    visual[span["start"] : span["end_exclusive"]] = True
    return replace(prompt, visual=visual, spans=(VisualSpan(span["start"], span["length"], ()),))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())
