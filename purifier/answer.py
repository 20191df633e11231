"""An answer to a question about an image, defended or not: the whole way in one place.

    messages -> prepare -> encode -> saliency -> mask -> denoise -> text
"""
# SKELETON: signatures are fixed, bodies follow.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs, Mdlm, Message


@dataclass(frozen=True)
class MaskedPlane:
    """Saliency and mask of one image, carried onto the image plane.

    Attributes:
        saliency: float32 [rows, columns], non-negative.
        masked: float32 [rows, columns], the masked share of every cell, 0 to 1.
    """

    saliency: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Answer:
    """One answer and the evidence of how it came about.

    Attributes:
        text: The answer.
        token_ids: Its ids, up to the stop sequence.
        finish_reason: `stop` if a stop sequence ended it, `length` otherwise.
        prompt_tokens: Prompt length in positions, images expanded.
        n_visual_tokens: Visual tokens of all images.
        n_units: What the mask ratio counts: visual tokens (`token`) or patches of the image
            plane (`patch`).
        saliency: float32 [n_units]; None if nothing was masked.
        masked: bool [n_units]; None if nothing was masked.
        planes: The same on the plane of every image; empty if nothing was masked.
        timings: Seconds by part: `encode`, `saliency`, `mask`, `denoise`.
        steps: Denoising steps run.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    n_visual_tokens: int
    n_units: int
    saliency: Tensor | None
    masked: Tensor | None
    planes: tuple[MaskedPlane, ...]
    timings: dict[str, float]
    steps: int


def answer(
    mdlm: Mdlm,
    image: Image.Image | Sequence[Image.Image] | None,
    question: str,
    *,
    generation: GenerationConfig | None = None,
    masking: MaskingConfig | None = None,
) -> Answer:
    """Answers one question about one image, several, or none. `masking=None` is undefended."""
    raise NotImplementedError


def answer_inputs(
    mdlm: Mdlm,
    inputs: Inputs,
    *,
    generation: GenerationConfig | None = None,
    masking: MaskingConfig | None = None,
    check: Callable[[], None] | None = None,
) -> Answer:
    """Answers a prepared request.

    Args:
        mdlm: The model.
        inputs: From `mdlm.prepare`.
        generation: Denoising settings; defaults of `GenerationConfig`.
        masking: The defence; None answers undefended.
        check: Called between the parts and before every denoising step; what it raises ends
            the generation (cancellation, deadlines).
    """
    raise NotImplementedError


def answer_batch(
    mdlm: Mdlm,
    requests: Sequence[Inputs],
    *,
    generation: GenerationConfig | None = None,
    masking: MaskingConfig | None = None,
) -> list[Answer]:
    """Answers several prepared requests together; each as it would be answered alone."""
    raise NotImplementedError


def user_messages(
    image: Image.Image | Sequence[Image.Image] | None, question: str
) -> list[Message]:
    """The dialogue of a single question."""
    raise NotImplementedError
