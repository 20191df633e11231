"""One question answered the published way."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.plain.forward import encode
from benchmarks.plain.generate import generate
from benchmarks.plain.saliency import mask_visual, official_scores, top_positions
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.numeric import seconds


@dataclass(frozen=True)
class PlainAnswer:
    """An answer and the seconds of its parts: `encode`, `saliency`, `denoise`.

    Attributes:
        text: The answer.
        token_ids: Its ids, up to the stop sequence.
        masked: Masked visual tokens.
        steps: Forward passes of the denoising loop.
        finished: False if `limit` ended the loop.
        timings: Seconds by part.
    """

    text: str
    token_ids: list[int]
    masked: int
    steps: int
    finished: bool
    timings: dict[str, float]


def plain_answer(
    mdlm: LladaV,
    inputs: Inputs,
    generation: GenerationConfig,
    masking: MaskingConfig | None = None,
    *,
    limit: int | None = None,
) -> PlainAnswer:
    """Answers a prepared request: encode, and with `masking` score and mask, then denoise.

    Args:
        mdlm: The model.
        inputs: From `mdlm.prepare`.
        generation: See `benchmarks.plain.generate`.
        masking: The published defence; None answers undefended.
        limit: Forward passes after which denoising is left off.

    Raises:
        InvalidSetting: If the settings are not those of the published code.
    """
    clock = [seconds(mdlm.device)]
    prompt = encode(mdlm, inputs)
    clock.append(seconds(mdlm.device))
    n_masked = 0
    if masking is not None and inputs.images:
        chosen = top_positions(official_scores(mdlm, prompt, generation, masking), masking.ratio)
        prompt = mask_visual(mdlm, prompt, chosen)
        n_masked = len(chosen)
    clock.append(seconds(mdlm.device))
    made = generate(mdlm, prompt, generation, masked=masking is not None, limit=limit)
    clock.append(seconds(mdlm.device))
    parts = ("encode", "saliency", "denoise")
    timings = {part: clock[at + 1] - clock[at] for at, part in enumerate(parts)}
    text = mdlm.decode(made.token_ids).strip()
    return PlainAnswer(text, made.token_ids, n_masked, made.steps, made.finished, timings)
