"""DiSP: defended answers from multimodal diffusion language models nobody trusts.

    from purifier import load_mdlm, GenerationConfig, MaskingConfig, answer

    mdlm = load_mdlm(path, device="cpu", dtype="float32")
    a = answer(mdlm, image, "What is this?", masking=MaskingConfig())
    a.text, a.masked, a.timings

What stands in `__all__` is stable; everything else may change.

Names are imported when they are first used: a command that reads a key file or an audit log uses
parts of this package, and would otherwise wait some seconds for PyTorch and transformers.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "answer": ("Answer", "answer", "answer_batch", "answer_inputs"),
    "defense.config": ("MaskingConfig",),
    "defense.saliency": ("top_fraction", "visual_saliency"),
    "denoise.config": ("GenerationConfig",),
    "errors": (
        "CheckpointError",
        "DataError",
        "InvalidPrompt",
        "InvalidSetting",
        "PromptTooLong",
        "PurifierError",
    ),
    "mdlm.registry": ("checkpoint_id", "load_mdlm"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose `answer` is the function, also once the module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "answer" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
