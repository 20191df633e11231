"""DiSP: defended answers from multimodal diffusion language models nobody trusts.

    from purifier import load_mdlm, GenerationConfig, MaskingConfig, answer

    mdlm = load_mdlm(path, device="cpu", dtype="float32")
    a = answer(mdlm, image, "What is this?", masking=MaskingConfig())
    a.text, a.masked, a.timings

What stands in `__all__` is stable; everything else may change.
"""

from purifier.answer import Answer, answer, answer_batch, answer_inputs
from purifier.defense.config import MaskingConfig
from purifier.defense.saliency import top_fraction, visual_saliency
from purifier.denoise.config import GenerationConfig
from purifier.errors import (
    CheckpointError,
    DataError,
    InvalidPrompt,
    InvalidSetting,
    PromptTooLong,
    PurifierError,
)
from purifier.mdlm.registry import checkpoint_id, load_mdlm

__all__ = [
    "Answer",
    "CheckpointError",
    "DataError",
    "GenerationConfig",
    "InvalidPrompt",
    "InvalidSetting",
    "MaskingConfig",
    "PromptTooLong",
    "PurifierError",
    "answer",
    "answer_batch",
    "answer_inputs",
    "checkpoint_id",
    "load_mdlm",
    "top_fraction",
    "visual_saliency",
]
